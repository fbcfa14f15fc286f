import os

from rnnkit.callbacks.curve import draw_curves


def draw(folder, text):
    (folder / "metrics.csv").write_text(text)
    draw_curves(folder / "metrics.csv", folder / "ppl.png", "ppl")
    return (folder / "ppl.png").read_bytes()


def test_the_picture_follows_the_csv(tmp_path):
    one = draw(tmp_path, "step,train/ppl,val/ppl\n9,90,\n19,60,\n19,,70\n")
    two = draw(tmp_path, "step,train/ppl,val/ppl\n9,90,\n19,60,\n19,,70\n29,50,\n29,,55\n")
    assert one.startswith(b"\x89PNG")
    assert one != two
    assert sorted(os.listdir(tmp_path)) == ["metrics.csv", "ppl.png"]


def test_a_run_without_training_points_is_drawn(tmp_path):
    assert draw(tmp_path, "step,val/ppl\n19,70\n").startswith(b"\x89PNG")
