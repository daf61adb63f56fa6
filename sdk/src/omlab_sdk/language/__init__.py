"""Language models: prompts, generation and engines that plugins share.

``generating``, ``sampling``, ``tokens``, ``model`` and ``genai`` run an answer and import no torch; ``llama`` and
``building`` make an engine once and need the extra ``omlab-sdk[language]``. ``training``, ``preferences``,
``retrieval``, ``memory`` and ``choosing`` are what people build around a language model.
"""
