"""The heat maps of chapter 1: which weights, which letters."""

from posttrain.show.figures_pretraining import heat_maps


def test_a_square_per_layer_has_its_weights_and_the_letters_at_both_sides():
    layers = {f"layer {i}": [[1.0, 0.0], [i / 10, 1 - i / 10]] for i in range(4)}
    figure = heat_maps(layers, "a\n")
    assert len(figure.axes) == 4
    for i, axis in enumerate(figure.axes):
        (image,) = axis.images
        assert image.get_array().tolist() == layers[f"layer {i}"]
        assert image.get_clim() == (0, 1) and axis.get_title() == f"layer {i}"
        for ticks in (axis.get_xticklabels(), axis.get_yticklabels()):
            assert [tick.get_text() for tick in ticks] == ["a", "⏎"]


def test_no_weight_is_no_ink():
    (axis,) = heat_maps({"layer 1": [[1.0, 0.0], [0.5, 0.5]]}, "ab").axes
    paint = axis.images[0].cmap
    assert paint(0.0)[3] == 0 and paint(1.0)[3] == 1
