"""The teacher: a frozen copy, asked afresh or once a view, and the loss that listens to it."""

from dataclasses import replace

import pytest
import torch

from reluctant.distillation import Teacher, distillation, teaching
from reluctant.errors import Paused
from reluctant.loop import Loop
from reluctant.models import load_model
from reluctant.progress import TimeLimit
from reluctant.training import Training, fit


@pytest.fixture
def loop(few_digits, fabric):
    """Makes loops of two steps an epoch over two views of the few digits, or over fresh ones."""

    def make(directory=None, views=2, epochs=4, **settings):
        augmentation = replace(few_digits.augmentation, views=views)
        made = Loop(
            "search",
            train=few_digits.train,
            augmentation=augmentation,
            epochs=epochs,
            batch=128,
            fabric=fabric,
            directory=directory,
            **settings,
        )
        torch.manual_seed(0)
        made.setup(torch.nn.Linear(1, 1))
        return made

    return make


def test_distillation_is_the_scaled_divergence():
    student, teacher = torch.randn(4, 7), torch.randn(4, 7)
    p, q = torch.softmax(teacher / 4, 1), torch.softmax(student / 4, 1)
    torch.testing.assert_close(distillation(student, teacher, 4.0), 16 * (p * (p / q).log()).sum(1).mean())
    assert float(distillation(teacher, teacher, 4.0)) == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("views", [0, 2])
def test_a_teacher_has_no_gradients_and_is_a_copy(trained, loop, views):
    trained.train()
    made = loop(views=views, epochs=1)
    teacher = Teacher(trained, made)
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    assert all(not teacher(step).requires_grad for step in made)
    assert all(torch.equal(value, before[name]) for name, value in trained.state_dict().items())
    assert all(p.requires_grad for p in trained.parameters())
    assert trained.eval()


def test_scores_of_a_view_are_those_of_its_images(trained, loop):
    made = loop()
    teacher = Teacher(trained, made)
    for step in made:
        with torch.no_grad():
            torch.testing.assert_close(teacher(step), trained(step.images), atol=2e-2, rtol=2e-3)
        assert step.view == step.epoch % 2


def test_each_view_is_looked_at_once_and_found_again(trained, loop, tmp_path, monkeypatch):
    asked = []
    scores = Teacher._scores
    monkeypatch.setattr(Teacher, "_scores", lambda self, images: asked.append(len(images)) or scores(self, images))

    def run(model, **settings):
        made = loop(tmp_path, **settings)
        (tmp_path / "search.state").unlink(missing_ok=True)
        teacher = Teacher(model, made)
        return torch.cat([teacher(step) for step in made])

    first = run(trained)
    assert sum(asked) == 2 * 256
    again = run(trained)
    assert sum(asked) == 2 * 256
    assert torch.equal(first, again)
    run(trained, seed=1)
    assert sum(asked) == 4 * 256


def test_a_view_cut_short_by_a_time_limit_goes_on(trained, loop, tmp_path, monkeypatch):
    monkeypatch.setattr("reluctant.distillation.ROWS", 100)
    limit, asked = TimeLimit(1e6), []
    scores = Teacher._scores

    def counted(self, images):
        asked.append(len(images))
        limit.seconds = 1e6 if len(asked) < 4 else 0.0  # 3 for view 0, and one more
        return scores(self, images)

    def run(made):
        teacher = Teacher(trained, made)
        return torch.cat([teacher(step) for step in made])

    expected = run(loop())
    monkeypatch.setattr(Teacher, "_scores", counted)
    with pytest.raises(Paused, match="teacher's view 1 100 of 256"):
        run(loop(tmp_path, progress=limit))
    asked.clear()
    rest = run(loop(tmp_path))
    assert asked == [100, 56]
    assert torch.equal(rest, expected[-len(rest) :])


def test_students_of_kept_scores_learn_as_well(trained, few_digits, fabric, tmp_path):
    """Half a step in 16 bits is all that differs."""
    task = replace(few_digits, augmentation=replace(few_digits.augmentation, views=2))
    fitted = fit(trained, task, Training(epochs=4, batch=64), teacher=trained, fabric=fabric, directory=tmp_path)
    assert len(list(tmp_path.glob("teacher-*.state"))) == 2
    assert fitted.state_dict().keys() == trained.state_dict().keys()


def test_images_that_do_not_count_are_zero_in_the_mean():
    student, teacher = torch.randn(4, 7), torch.randn(4, 7)
    each = torch.stack([distillation(student[i : i + 1], teacher[i : i + 1], 4.0) for i in range(4)])
    counted = torch.tensor([True, False, True, False])
    torch.testing.assert_close(distillation(student, teacher, 4.0, counted), each[counted].sum() / 4)
    torch.testing.assert_close(distillation(student, teacher, 4.0, ~counted & counted), torch.tensor(0.0))


def test_a_teacher_may_be_heard_only_where_it_is_right(loop, tiny, few_digits):
    begun = loop(views=0, epochs=1)
    step = next(iter(begun))
    output = torch.randn(128, 10)
    scores = Teacher(tiny, begun)(step)
    right = scores.argmax(1) == step.labels
    assert 0 < int(right.sum()) < 128
    with teaching(tiny, tiny, begun, temperature=4.0, distil=2.0, only_right=True) as lesson:
        torch.testing.assert_close(lesson(step)(output), 2 * distillation(output, scores, 4.0, right))


def test_without_labels_a_student_still_learns_its_teachers_answers(trained, few_digits, fabric):
    torch.manual_seed(1)
    student = load_model("resnet8:width=4", task=few_digits)
    settings = Training(epochs=30, lr=0.05, batch=64, labels=0.0, temperature=1.0)
    wrong = replace(few_digits, train=replace(few_digits.train, labels=(few_digits.train.labels + 1) % 10))
    taught = fit(student, wrong, settings, teacher=trained, fabric=fabric)
    images = few_digits.train.inputs(slice(None))
    with torch.no_grad():
        same = (taught.eval()(images).argmax(1) == trained.eval()(images).argmax(1)).float().mean()
    assert float(same) > 0.6
