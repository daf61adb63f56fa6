"""What adapters that train a network share: from cases to tensors, heads, and the adapted model.

``capture`` and ``model`` run an adapted model and import no torch; ``networks``, ``augment`` and ``trained`` train one.

Nothing is asked of the authors of models: the tensors that a network takes are caught where the model's own ``predict``
hands them to its engine, and the parts of a transformer are found by the names that most upstreams use (a module with
``patch_embed`` and ``blocks``; properties of these names will do). Who wants more than the augmentation of prepared
tensors defines :meth:`omlab.model.Model.augment`.
"""
