"""A study's figures: nothing that is written in them is cut, or lies over the next thing."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lit_pretrain.studies.plots import Line, Panel, draw_panel, spread


def test_titles_and_names_stay_within_the_figure():
    figure = Figure(figsize=(6.2, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    # All end at the bottom.
    lines = [Line(f"{64 * width} x 2", [1e6, 4e6], [6.0, 5.3 - 1e-4 * width], color=width) for width in range(6)]
    metric = "validation/masked_language_modeling/loss"
    draw_panel(figure, axes, Panel(f"{metric} over operations of the training (FLOPs)\nfitted", "FLOPs", metric, lines))
    figure.canvas.draw()
    title, boxes = axes.title.get_window_extent(), [text.get_window_extent() for text in axes.texts]
    left, right = axes.get_tightbbox().x0, figure.bbox.x1
    for box in (axes._left_title.get_window_extent(), title, *boxes):
        assert left - 1 <= box.x0 and box.x1 <= right + 1
    assert [text.get_text() for text in axes.texts] == [line.name for line in lines]
    assert all(box.y1 > axes.bbox.y0 for box in boxes)
    centres = sorted((box.y0 + box.y1) / 2 for box in boxes)
    assert min(later - sooner for sooner, later in zip(centres, centres[1:], strict=False)) > 20


def test_a_line_that_the_axis_names_is_not_named_twice():
    figure = Figure()
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw_panel(figure, axes, Panel("title", "x", "loss", [Line("loss", [1, 2], [3, 4])]))
    assert not axes.texts


def test_names_are_spread_within_limits():
    assert spread([0, 0, 0], 10, (0, 100)) == [0, 10, 20]
    assert spread([100, 100, 50], 10, (0, 100)) == [90, 100, 50]
    assert spread([5, 50], 10) == [5, 50]
