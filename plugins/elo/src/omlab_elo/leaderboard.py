"""The leaderboard as a picture: ratings with their intervals, and who beats whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from omlab_elo.battles import pooled
from omlab_elo.rating import Ratings, wins

INK, FAINT, LINE, PAPER = (28, 30, 36), (112, 118, 130), (222, 224, 230), (255, 255, 255)
DOT, BAND = (36, 92, 168), (166, 196, 232)
LOSES, EVEN, WINS = (198, 80, 66), (245, 245, 246), (52, 120, 190)
_ROW, _LEFT, _CELL = 26, 150, 46


@attrs.frozen(eq=False)
class Board:
    """What the table shows.

    Attributes
    ----------
    models : in the order of the first dataset's ratings.
    columns : dataset -> model -> rounded rating (or F1).
    ranks : the same as ranks, 1 the best.
    average : mean rank of each model.
    """

    models: tuple[str, ...]
    columns: Mapping[str, Mapping[str, float]]
    ranks: Mapping[str, Mapping[str, float]]
    average: tuple[float, ...]


def draw(board: Board, rated: Sequence[Ratings], title: str) -> Image.Image:
    """Ratings of every dataset side by side, below them the win matrix over all battles. Best models on top."""
    fonts = {size: ImageFont.load_default(size=size) for size in (11, 13, 20)}
    order = sorted(range(len(board.models)), key=lambda i: board.average[i])
    models = [board.models[i] for i in order]
    panel = 250
    width = max(_LEFT + len(rated) * (panel + 24) + 40, _LEFT + len(models) * _CELL + 60)
    top = 92
    matrix_top = top + len(models) * _ROW + 150
    sheet = Image.new("RGB", (width, matrix_top + len(models) * _ROW + 50), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((24, 20), title, INK, fonts[20])
    pen.text((24, 48), "Elo rating: bootstrap median and 95 % interval", FAINT, fonts[13])
    for row, model in enumerate(models):
        pen.text((_LEFT - 14, top + row * _ROW + 13), model, INK, fonts[13], anchor="rm")
    for number, ratings in enumerate(rated):
        _panel(pen, ratings, models, (_LEFT + number * (panel + 24), top, panel), fonts)
    pen.text((24, matrix_top - 96), "Share of decided battles that a row's model wins", FAINT, fonts[13])
    _matrix(sheet, pen, rated, models, matrix_top, fonts)
    return sheet


def _panel(
    pen: Any, ratings: Ratings, models: Sequence[str], box: tuple[int, int, int], fonts: Mapping[int, Any]
) -> None:
    left, top, width = box
    middle = np.where(np.isnan(ratings.median), ratings.online, ratings.median)
    low = float(np.nanmin(np.fmin(ratings.low, middle))) - 10
    high = float(np.nanmax(np.fmax(ratings.high, middle))) + 10

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * width

    pen.text((left + width / 2, top - 14), ratings.battles.name, INK, fonts[13], anchor="mm")
    bottom = top + len(models) * _ROW
    step = 50 if high - low < 420 else 100
    for mark in range(int(np.ceil(low / step)) * step, int(high) + 1, step):
        pen.line((x(mark), top, x(mark), bottom), LINE)
        pen.text((x(mark), bottom + 10), str(mark), FAINT, fonts[11], anchor="mm")
    for row, model in enumerate(models):
        if model not in ratings.battles.models:
            continue
        at, y = ratings.battles.models.index(model), top + row * _ROW + 13
        if not np.isnan(ratings.low[at]):
            pen.rounded_rectangle((x(ratings.low[at]), y - 4, x(ratings.high[at]), y + 4), 4, BAND)
        centre = x(float(middle[at]))
        pen.ellipse((centre - 4, y - 4, centre + 4, y + 4), DOT)


def _matrix(
    sheet: Image.Image, pen: Any, rated: Sequence[Ratings], models: Sequence[str], top: int, fonts: Mapping[int, Any]
) -> None:
    whole = pooled([ratings.battles for ratings in rated])
    share = wins(whole)
    place = [whole.models.index(model) for model in models]
    for column, model in enumerate(models):
        text = Image.new("L", (110, 16))
        ImageDraw.Draw(text).text((0, 8), model, 255, fonts[11], anchor="lm")
        turned = text.rotate(40, Image.Resampling.BICUBIC, expand=True)
        sheet.paste(INK, (_LEFT + column * _CELL + 14, top - turned.height), turned)
    for row, model in enumerate(models):
        y = top + row * _ROW
        pen.text((_LEFT - 14, y + 13), model, INK, fonts[13], anchor="rm")
        for column in range(len(models)):
            value = share[place[row], place[column]]
            if np.isnan(value):
                continue
            end = WINS if value > 0.5 else LOSES
            mix = abs(value - 0.5) * 2
            colour = tuple(round(e + (t - e) * mix) for e, t in zip(EVEN, end, strict=True))
            x = _LEFT + column * _CELL
            pen.rectangle((x + 1, y + 1, x + _CELL - 1, y + _ROW - 1), colour)
            ink = PAPER if mix > 0.6 else INK
            pen.text((x + _CELL / 2, y + 13), f"{value:.0%}", ink, fonts[11], anchor="mm")
