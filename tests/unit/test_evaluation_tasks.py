"""Tasks read the official formats, ask as published, and score as the benchmarks' own scripts do."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import REPOSITORY
from evaluation_files import ANSWERS, DATA, benchmarks, draw, scored

from edge.errors import UsageError
from edge.evaluation import files, selection, tasks
from edge.evaluation.folder import FolderTask
from edge.evaluation.options import chosen
from edge.evaluation.task import LETTER, SHORT, Metric
from edge.evaluation.tasks import mmbench, mme, pope, sqa

TASKS = tasks.names()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return benchmarks(tmp_path_factory.mktemp("benchmarks") / "data")


@pytest.fixture
def own(data: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(data, tmp_path / "data")


def metrics(name: str, data: Path) -> list[Metric]:
    return tasks.find(name).metrics(scored(name, data))


def figures(name: str, data: Path) -> dict[tuple[str, str], float]:
    return {(metric.name, metric.part): metric.value for metric in metrics(name, data)}


def read(name: str, data: Path) -> None:
    tasks.find(name).read(tasks.locate(name, data))


# What the benchmarks' own scripts print for tests/data/evaluation/answers.json.


def test_pope_is_scored_as_its_authors_do(data: Path) -> None:
    """AoiDragon/POPE 08d957b, evaluate.py. The mean of F1 over splits is what papers report as POPE."""
    found = figures("pope", data)
    for split, expected in {
        "random": (0.5, 0.5, 0.5, 0.5, 0.5),
        "popular": (0.25, 0.3333333333333333, 0.5, 0.4, 0.75),
        "adversarial": (0.5, 0.5, 0.5, 0.5, 0.5),
    }.items():
        names = ("accuracy", "precision", "recall", "F1", "yes ratio")
        assert [found[name, split] for name in names] == pytest.approx([100 * value for value in expected])
    assert found["F1, mean of splits", ""] == pytest.approx(100 * (0.5 + 0.4 + 0.5) / 3)


def test_textvqa_is_scored_as_published(data: Path) -> None:
    """haotian-liu/LLaVA c121f04, llava/eval/m4c_evaluator.py."""
    each = {one.question.id: one.score for one in scored("textvqa", data)}
    expected = [1.0, 1.0, 1.0, 1.0, 0.3, 0.3, 0.6, 0.3, 1.0, 1.0, 0.6, 0.0]
    assert each == pytest.approx({str(34602 + n): score for n, score in enumerate(expected)})
    assert figures("textvqa", data) == {("accuracy", ""): pytest.approx(67.5)}
    assert figures("textvqa_ocr", data) == figures("textvqa", data)


def test_vqav2_is_scored_as_the_challenge_does(data: Path) -> None:
    """GT-Vision-Lab/VQA a013f00, vqaEval.py, of answers that haotian-liu/LLaVA c121f04 prepares for submission
    (scripts/convert_vqav2_for_submission.py)."""
    each = {one.question.id: round(100 * one.score, 4) for one in scored("vqav2", data)}
    assert each == {
        "262148000": 100.0,
        "262148001": 100.0,
        "262148002": 0.0,
        "393225000": 100.0,
        "393225001": 100.0,
        "393225002": 0.0,
        "240301000": 90.0,
        "240301001": 30.0,
        "240301002": 100.0,
        "240301003": 100.0,
    }
    kinds = {"": 72.0, "other": 86.0, "number": 66.6667, "yes/no": 45.0}
    assert figures("vqav2", data) == {("accuracy", k): pytest.approx(v, abs=1e-4) for k, v in kinds.items()}


def test_gqa_is_scored_as_its_authors_do(data: Path) -> None:
    """GQA's eval.py (as in SHI-Labs/VCoder 4e85ace), of what haotian-liu/LLaVA c121f04's convert_gqa_for_eval.py
    makes of the answers; it rounds to two digits."""
    found = figures("gqa", data)
    assert {part: round(found["accuracy", part], 2) for part in ("", "binary", "open")} == {
        "": 55.56,
        "binary": 60.0,
        "open": 50.0,
    }


def test_scienceqa_is_scored_as_published(data: Path) -> None:
    """haotian-liu/LLaVA c121f04, llava/eval/eval_science_qa.py."""
    right = [one.question.id for one in scored("sqa", data) if one.score]
    assert right == ["4", "11", "15", "22", "46"]
    found = figures("sqa", data)
    assert (found["accuracy", ""], found["accuracy", "IMG"]) == (50.0, 40.0)


def test_mme_is_scored_as_its_authors_do(data: Path) -> None:
    """BradyFU/Awesome-Multimodal-Large-Language-Models dd29509 (branch Evaluation), calculation.py of eval_tool.zip."""
    found = figures("mme", data)
    scores = (200.0, 25.0, 50.0, 0.0, 200.0, 25.0, 50.0, 0.0, 200.0, 25.0, 50.0, 0.0, 200.0, 25.0)
    names = (*mme.PERCEPTION, *mme.COGNITION)
    assert {name: found["score", name] for name in names} == dict(zip(names, scores, strict=True))
    assert (found["perception", ""], found["cognition", ""]) == (775.0, 275.0)
    assert (found["accuracy", "position"], found["accuracy+", "position"]) == (50.0, 0.0)


def test_mmbench_is_scored_as_its_toolkit_does(data: Path) -> None:
    """open-compass/VLMEvalKit e8e78f0, vlmeval/dataset/utils/multiple_choice.py, without a judge (exact matching)."""
    right = {int(one.question.id) for one in scored("mmbench", data) if one.score}
    every = {int(one.question.id) for one in scored("mmbench", data)}
    assert every - right == {254, 2000253, 2000254, 2000258}
    assert figures("mmbench", data) == {
        ("circular accuracy", ""): pytest.approx(50.0),
        ("vanilla accuracy", ""): pytest.approx(100 * 0.8333333333333334),
        ("circular accuracy", "attribute_reasoning"): 50.0,
        ("circular accuracy", "coarse_perception"): 100.0,
        ("circular accuracy", "logic_reasoning"): 0.0,
    }


@pytest.mark.parametrize("name", TASKS)
def test_every_interval_holds_its_value(data: Path, name: str) -> None:
    for metric in metrics(name, data):
        top = 100 if metric.unit == "%" else 2000
        assert 0 <= metric.low <= metric.value <= metric.high <= top
        assert metric.low < metric.high


@pytest.mark.parametrize("name", TASKS)
def test_figures_do_not_depend_on_the_order(data: Path, name: str) -> None:
    answered, task = scored(name, data), tasks.find(name)
    found = {(m.name, m.part): m.value for m in task.metrics(answered[::-1])}
    assert found == pytest.approx(figures(name, data))


# prompts


def prompts(name: str, data: Path) -> dict[str, str]:
    return {one.question.id: one.question.prompt for one in scored(name, data)}


def test_short_answers_are_asked_for_as_published(data: Path) -> None:
    assert SHORT == "Answer the question using a single word or phrase."
    assert prompts("pope", data)["random/2"] == f"Is there a boat in the image?\n{SHORT}"
    assert prompts("textvqa", data)["34602"] == f"What is the brand of this camera?\n{SHORT}"
    assert prompts("gqa", data)["201307251"] == f"Is it overcast?\n{SHORT}"
    assert prompts("vqav2", data)["262148000"] == f"Where is he looking?\n{SHORT}"
    assert prompts("mme", data)["color/0002/1"] == f"Is there a color in this image?\n{SHORT}"


def test_ocr_tokens_stand_between_question_and_request(data: Path) -> None:
    asked = prompts("textvqa_ocr", data)
    assert asked["34602"] == f"What is the brand of this camera?\nReference OCR token: DAKOTA, DIGITAL, 27\n{SHORT}"
    assert asked["34608"] == f"How many labels?\nReference OCR token: \n{SHORT}"


def test_published_questions_with_ocr_tokens_are_taken_as_they_are(own: Path) -> None:
    known = prompts("textvqa_ocr", own)
    (own / "textvqa" / "TextVQA_Rosetta_OCR_v0.2_val.json").unlink()
    entries = [
        {"question_id": one.question.image_id, "image": "x.jpg", "text": known[one.question.id].replace("27", "28")}
        for one in scored("textvqa", own)
    ]
    path = own / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl"
    path.write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")
    assert prompts("textvqa_ocr", own)["34602"].splitlines()[1] == "Reference OCR token: DAKOTA, DIGITAL, 28"
    path.write_text("\n".join(map(json.dumps, entries[1:])), encoding="utf-8")
    with pytest.raises(UsageError, match=r"no OCR tokens for 1 of 12 questions; the first is 34602"):
        read("textvqa_ocr", own)


def test_a_choice_is_asked_for_as_published(data: Path) -> None:
    assert LETTER == "Answer with the option's letter from the given choices directly."
    asked = prompts("sqa", data)
    assert asked["11"] == (
        f"What is the name of the colony shown?\nA. Maryland\nB. New Hampshire\nC. Rhode Island\nD. Vermont\n{LETTER}"
    )
    assert asked["5"].startswith("Context: People can use the engineering-design process.\nWhich of the following")
    assert asked["15"].startswith("Context: Select the best answer.\nWould you")
    asked = prompts("mmbench", data)
    assert asked["252"] == f"Look at\nthe table.\nWhich tool?\nA. a hammer\nB. a saw\n{LETTER}"
    assert asked["253"].startswith("Which colour?\nA. red")  # its hint is "nan"
    assert asked["254"].endswith(f"C. A bird\n{LETTER}")  # an option that reads None is none
    assert asked["1000256"] == f'Which word?\nA. no\nB. "yes"\n{LETTER}'


def test_images_are_the_official_files(data: Path) -> None:
    images = {name: [one.question.image for one in scored(name, data)] for name in TASKS}
    assert images["vqav2"][0] == data / "vqav2" / "val2014" / "COCO_val2014_000000262148.jpg"
    assert images["gqa"][0] == data / "gqa" / "images" / "n161313.jpg"
    assert images["sqa"][:2] == [None, data / "sqa" / "images" / "test" / "5" / "image.png"]
    release = data / "mme" / "MME_Benchmark_release_version"
    assert release / "posters" / "images" / "0001.jpg" in images["mme"]
    assert release / "OCR" / "0001.jpg" in images["mme"]
    assert all(isinstance(image, bytes) and image.startswith(b"\x89PNG") for image in images["mmbench"])
    assert len({id(image) for image in images["mmbench"]}) == 6  # rotations share theirs


def test_an_image_of_mme_may_be_a_png(own: Path) -> None:
    jpeg = own / "mme" / "MME_Benchmark_release_version" / "OCR" / "0001.jpg"
    jpeg.rename(jpeg.with_suffix(".png"))
    assert jpeg.with_suffix(".png") in [one.question.image for one in scored("mme", own)]


# rotations


def test_a_table_without_rotations_gets_them(own: Path) -> None:
    """The same that the toolkit's table brings."""
    path = own / "mmbench" / "mmbench_dev_20230712.tsv"
    brought = {q.id: (q.prompt, q.truth, q.options, q.group) for q in mmbench.read(path)}
    content = path.read_text(encoding="utf-8")
    path.write_text(content[: content.index("\n1000241") + 1], encoding="utf-8")
    made = {q.id: (q.prompt, q.truth, q.options, q.group) for q in mmbench.read(path)}
    assert made == brought


def test_a_chinese_table_is_asked_in_chinese(own: Path) -> None:
    path = own / "mmbench" / "mmbench_dev_20230712.tsv"
    chinese = path.rename(path.with_name("mmbench_dev_cn_20231003.tsv"))
    assert all(q.prompt.endswith("\n请直接回答选项字母。") for q in mmbench.read(chinese))


# answers


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "yes"),
        ("no", "no"),
        ("NO", "yes"),
        ("No", "no"),
        ("Yes. No.", "yes"),
        ("not, I think", "no"),
        ("nor", "yes"),
    ],
)
def test_an_answer_of_pope(text: str, found: str) -> None:
    assert pope.answered(text) == found


@pytest.mark.parametrize(
    ("text", "found"), [("", "other"), ("NO", "no"), ("Yes", "yes"), ("know", "no"), ("It is, yes", "other")]
)
def test_an_answer_of_mme(text: str, found: str) -> None:
    assert mme.answered(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        ("B", "B"),
        ("AB", None),
        ("B. yes", "B"),
        ("B.", None),
        ("E", None),
        ("The answer is B", None),
        ("The answer is B.", "B"),
        ("The answer is B. The answer is C.", None),
    ],
)
def test_an_answer_of_scienceqa(text: str, found: str | None) -> None:
    assert sqa.answered(text, 3) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", None),
        ("B", "B"),
        ("(B)", "B"),
        ("B. a dog", "B"),
        ("A or B", None),
        ("A dog", "A"),  # the article is a letter that stands alone
        ("it is a dog", "B"),
        ("a cat and a dog", None),
        ("The answer is C", None),  # there are two options
        ("A is what I would say here", None),
        ("A, and so the correct answer is **b**, b being it", "B"),
        ("Z", "Z"),
        ("Cannot determine the answer: B", "Z"),
        ("a dog " * 20, None),
    ],
)
def test_which_option_an_answer_names(text: str, found: str | None) -> None:
    assert chosen(text, {"A": "a cat", "B": "a dog"}) == found


def test_pope_without_a_positive_has_an_f1_of_0(data: Path) -> None:
    """The official script divides by zero there."""
    answers = dict.fromkeys(ANSWERS["pope"], "no")
    found = pope.metrics(scored("pope", data, answers))
    assert {m.part: m.value for m in found if m.name == "F1"} == dict.fromkeys(pope.SPLITS, 0.0)
    assert not [m for m in found if m.name == "precision"]


def test_a_sample_without_a_subtask_has_no_sum(data: Path) -> None:
    some = [one for one in scored("mme", data) if one.question.part != "OCR"]
    assert [m.name for m in mme.metrics(some) if not m.part] == ["cognition"]


# where files are


@pytest.mark.parametrize("name", TASKS)
def test_data_is_the_folder_or_the_one_above(data: Path, name: str) -> None:
    folder = tasks.find(name).FOLDERS[0]
    assert tasks.locate(name, data) == tasks.locate(name, data / folder) == data / folder


@pytest.mark.parametrize(
    ("name", "lost", "source"),
    [
        ("pope", "pope/coco/coco_pope_popular.json", "github.com/AoiDragon/POPE"),
        ("pope", "pope/val2014", "COCO's val2014.zip"),
        ("textvqa", "textvqa/TextVQA_0.5.1_val.json", "textvqa.org"),
        ("textvqa", "textvqa/train_images", "train_val_images.zip"),
        ("textvqa_ocr", "textvqa/TextVQA_Rosetta_OCR_v0.2_val.json", "OCR tokens"),
        ("gqa", "gqa/testdev_balanced_questions.json", "questions1.2.zip"),
        ("gqa", "gqa/images", "images.zip"),
        ("sqa", "sqa/problems.json", "github.com/lupantech/ScienceQA"),
        ("sqa", "sqa/pid_splits.json", "github.com/lupantech/ScienceQA"),
        ("sqa", "sqa/images/test", "test.zip"),
        ("mme", "mme/MME_Benchmark_release_version/OCR", "MME_Benchmark_release_version.zip"),
        ("mmbench", "mmbench/mmbench_dev_20230712.tsv", "github.com/open-compass/MMBench"),
        ("vqav2", "vqav2/v2_mscoco_val2014_annotations.json", "v2_Annotations_Val_mscoco.zip"),
        ("vqav2", "vqav2/v2_OpenEnded_mscoco_val2014_questions.json", "v2_Questions_Val_mscoco.zip"),
    ],
)
def test_a_file_that_is_missing_is_named_with_its_place_and_source(
    own: Path, name: str, lost: str, source: str
) -> None:
    path = own / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UsageError) as caught:
        read(name, own)
    assert str(path) in caught.value.message
    assert source in (caught.value.hint or "")


def test_a_missing_image_is_counted_and_named(own: Path) -> None:
    questions = tasks.find("gqa").read(own / "gqa")
    files.require_images(questions, "GQA")
    (own / "gqa" / "images" / "n235859.jpg").unlink()
    with pytest.raises(UsageError, match=r"1 of 3 images of GQA are missing; the first is .*n235859\.jpg"):
        files.require_images(questions, "GQA")


def test_another_tasks_folder_is_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds files of TextVQA, and none of POPE") as caught:
        tasks.locate("pope", data / "textvqa")
    assert "--task textvqa" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="no folder"):
        tasks.locate("pope", tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no folder"):
        tasks.locate("gqa", data / "mmbench" / "mmbench_dev_20230712.tsv")
    assert tasks.holders(data / "textvqa") == {"textvqa": "TextVQA"}
    assert tasks.holders(tmp_path) == {}


@pytest.mark.parametrize(("name", "meant"), [("POPE", "pope"), ("mmbnch", "mmbench"), ("textvqa-ocr", "textvqa_ocr")])
def test_an_unknown_task_is_guessed_at(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match="no task") as caught:
        tasks.find(name)
    assert (caught.value.hint or "").startswith(f"did you mean {meant!r}? one of: gqa, ")
    with pytest.raises(UsageError) as caught:
        tasks.find("zzz")
    assert (caught.value.hint or "").startswith("one of: ")


def test_one_of_several_tables_is_taken_by_name(own: Path) -> None:
    path = own / "mmbench" / "mmbench_dev_20230712.tsv"
    other = path.with_name("MMBench_DEV_EN.tsv")
    shutil.copy(path, other)
    with pytest.raises(UsageError, match="several tables"):
        read("mmbench", own)
    assert len(mmbench.read(tasks.locate("mmbench", other))) == 17


# damage

JSON = (
    ("pope", "pope/coco/coco_pope_random.json"),
    ("textvqa", "textvqa/TextVQA_0.5.1_val.json"),
    ("textvqa_ocr", "textvqa/TextVQA_Rosetta_OCR_v0.2_val.json"),
    ("gqa", "gqa/testdev_balanced_questions.json"),
    ("sqa", "sqa/problems.json"),
    ("sqa", "sqa/pid_splits.json"),
    ("vqav2", "vqav2/v2_OpenEnded_mscoco_val2014_questions.json"),
    ("vqav2", "vqav2/v2_mscoco_val2014_annotations.json"),
)


@pytest.mark.parametrize(("name", "file"), JSON)
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) * 2 // 3],
        lambda text: text.replace('"', "'"),
        lambda text: "[" * 100_000,
        lambda text: "[1, 2]",
        lambda text: "{}",
        lambda text: '{"data": {}, "questions": 3, "annotations": null, "test": "all"}',
        lambda text: '{"data": [3], "questions": [{}], "annotations": [[]], "test": [7], "4": NaN}',
        lambda text: text.replace("question", "asked").replace("image", "picture").replace("answer", "said"),
        lambda text: text.replace("test", "exam"),
    ],
    ids=["torn", "quotes", "deep", "list", "empty", "kinds", "members", "names", "split"],
)
def test_damage_is_told_by_file(own: Path, data: Path, name: str, file: str, damage: Callable[[str], str]) -> None:
    path, told = own / file, ""
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    try:
        found = tasks.find(name).read(own / name.partition("_")[0])
        selection.select(found, None, name)
    except UsageError as error:
        told = error.message
    if told:
        assert any(words in told for words in (path.name, "has no questions", "no OCR tokens"))
    else:  # what was damaged is nothing that is read
        assert {question.id for question in found} == {one.question.id for one in scored(name, data)}


@pytest.mark.parametrize("name", ["NaN", "Infinity", "-Infinity"])
def test_json_that_holds_no_number_is_refused(own: Path, name: str) -> None:
    path = own / "sqa" / "problems.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"answer": 1', f'"answer": {name}', 1), encoding="utf-8")
    with pytest.raises(UsageError, match=rf"problems\.json is not the JSON that was published: it holds {name}"):
        read("sqa", own)


@pytest.mark.parametrize(
    ("name", "file"),
    [("pope", "pope/coco/coco_pope_random.json"), ("mmbench", "mmbench/mmbench_dev_20230712.tsv")],
)
def test_text_that_is_none_is_refused(own: Path, name: str, file: str) -> None:
    (own / file).write_bytes(b'{"text": "\xff"}')
    with pytest.raises(UsageError, match=rf"cannot read .*{(own / file).stem}"):
        read(name, own)


def edit(path: Path, old: str, new: str) -> None:
    content = path.read_text(encoding="utf-8")
    assert old in content
    path.write_text(content.replace(old, new, 1), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "said"),
    [
        (
            "pope",
            "pope/coco/coco_pope_random.json",
            '"label": "yes"',
            '"label": "maybe"',
            r"entry 1 .*label is 'maybe'",
        ),
        ("pope", "pope/coco/coco_pope_random.json", '"Is there a cat in the image?"', "3", "entry 1 .*text is 3"),
        ("textvqa", "textvqa/TextVQA_0.5.1_val.json", '"nous les gosses",', "", "entry 1 .*10 answers are expected"),
        ("vqav2", "vqav2/v2_mscoco_val2014_annotations.json", "262148001", "262148009", "262148001 has no annotation"),
        ("sqa", "sqa/problems.json", '"answer": 1', '"answer": 5', "entry 4 .*answer 5 of 2 choices"),
        ("sqa", "sqa/pid_splits.json", '"4"', '"400"', r"entry 400 has no '400'"),
        (
            "mme",
            "mme/MME_Benchmark_release_version/OCR/0001.txt",
            "\tNo",
            " No",
            "0001.txt does not hold two questions",
        ),
        ("mme", "mme/MME_Benchmark_release_version/OCR/0001.txt", "\tNo", "\tNone", "0001.txt does not hold"),
        ("mmbench", "mmbench/mmbench_dev_20230712.tsv", "iVBOR", "iVB R", "entry 241 .*broken base64"),
        ("mmbench", "mmbench/mmbench_dev_20230712.tsv", "x\t254\t", "x\t999\t", "its image is '999'"),
        ("mmbench", "mmbench/mmbench_dev_20230712.tsv", "\tanswer\t", "\tright\t", "has no column answer"),
        ("mmbench", "mmbench/mmbench_dev_20230712.tsv", "fish\tB\tx", "fish\tE\tx", "its answer is 'E', of 4 options"),
        ("mmbench", "mmbench/mmbench_dev_20230712.tsv", "\n2000241", "\nlast", "entry last .*'last'"),
        ("mmbench", "mmbench/mmbench_dev_20230712.tsv", '"""yes"""', '"""yes""', "has not 14 fields"),
        ("mmbench", "mmbench/mmbench_dev_20230712.tsv", "fish\tB\tx", "fish\tB", "row 1 has not 14 fields"),
    ],
)
def test_an_entry_that_is_off_is_named(own: Path, name: str, file: str, old: str, new: str, said: str) -> None:
    edit(own / file, old, new)
    with pytest.raises(UsageError, match=said):
        read(name, own)


def test_questions_that_nobody_answered_are_named(own: Path) -> None:
    path = own / "vqav2" / "v2_mscoco_val2014_annotations.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["annotations"][2]["answers"] = []
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(UsageError, match=r"entry 3 .*nobody answered it"):
        read("vqav2", own)
    path.write_text(json.dumps({**document, "annotations": []}), encoding="utf-8")
    with pytest.raises(UsageError, match="holds no annotations"):
        read("vqav2", own)


def test_a_test_split_has_no_answers(own: Path) -> None:
    edit(own / "mmbench" / "mmbench_dev_20230712.tsv", "\tanswer\t", "\tright\t")
    with pytest.raises(UsageError) as caught:
        read("mmbench", own)
    assert "dev split" in (caught.value.hint or "")


def test_a_subtask_without_questions_is_named(own: Path) -> None:
    for path in (own / "mme" / "MME_Benchmark_release_version" / "count").glob("*.txt"):
        path.unlink()
    with pytest.raises(UsageError, match=r"no questions in .*count"):
        read("mme", own)


def test_images_longer_than_a_field_of_csv(own: Path) -> None:
    path = own / "mmbench" / "mmbench_dev_20230712.tsv"
    first = next(cell for cell in path.read_text(encoding="utf-8").split("\t") if cell.startswith("iVBOR"))
    long = base64.b64encode(base64.b64decode(first) + bytes(200_000)).decode()
    edit(path, first, long)
    assert max(len(q.image or b"") for q in mmbench.read(path) if isinstance(q.image, bytes)) > 200_000


# which questions


def test_zero_questions_and_questions_of_one_name(data: Path) -> None:
    with pytest.raises(UsageError, match="POPE has no questions"):
        selection.select([], None, "POPE")
    found = [one.question for one in scored("gqa", data)]
    with pytest.raises(UsageError, match="question 201307251 of GQA occurs 2 times"):
        selection.select([*found, found[0]], None, "GQA")


@pytest.mark.parametrize("name", TASKS)
def test_questions_about_one_image_follow_each_other(data: Path, name: str) -> None:
    found = selection.select([one.question for one in scored(name, data)], None, name)
    clusters = [question.cluster for question in found]
    assert len([c for c, d in zip(clusters, ["", *clusters], strict=False) if c != d]) == len(set(clusters))
    assert sorted(q.id for q in found) == sorted(one.question.id for one in scored(name, data))


@pytest.mark.parametrize("name", TASKS)
def test_a_sample_is_the_same_everywhere_and_grows(data: Path, name: str) -> None:
    every = [one.question for one in scored(name, data)]
    before: set[str] = set()
    for limit in (1, 3, 5, 100):
        drawn = {question.id for question in selection.select(every, limit, name)}
        assert drawn == {question.id for question in selection.select(every[::-1], limit, name)}
        assert drawn >= before
        assert len(drawn) >= min(limit, len(every))
        groups = {question.group for question in every if question.id in drawn} - {""}
        assert drawn >= {question.id for question in every if question.group in groups}
        before = drawn


def test_the_sample_of_today_is_that_of_tomorrow(data: Path) -> None:
    every = [one.question for one in scored("textvqa", data)]
    assert [q.id for q in selection.sample(every, 3)] == ["34602", "34610", "34612"]


def test_the_fingerprint_is_of_what_is_asked_and_of_what_is_right(own: Path) -> None:
    def found() -> str:
        return selection.fingerprint(tasks.find("gqa").read(own / "gqa"))

    first = found()
    assert first == found()
    edit(own / "gqa" / "testdev_balanced_questions.json", "overcast", "cloudy")
    second = found()
    edit(own / "gqa" / "testdev_balanced_questions.json", '"answer": "no"', '"answer": "yes"')
    assert len({first, second, found()}) == 3


# a folder of one's own


def test_a_folder_is_read_as_the_benchmark_reads_it() -> None:
    task = FolderTask("calib_data")
    found = task.read(REPOSITORY / "calib_data")
    assert found[0].prompt == "What is in the picture?"
    assert (found[0].image_id, found[0].image) == ("images/00.png", REPOSITORY / "calib_data" / "images" / "00.png")
    assert task.score(found[0], f" {found[0].truth[0]}\n") == 1.0
    assert task.score(found[0], found[0].truth[0].lower()) == 0.0


def test_a_folder_without_answers_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "cat.jpg")
    (tmp_path / "prompts.jsonl").write_text('{"image": "cat.jpg", "question": "What is this?"}\n')
    with pytest.raises(UsageError, match="no answers in"):
        FolderTask("mine").read(tmp_path)


# the listing


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_what_the_contract_says(name: str) -> None:
    task = tasks.find(name)
    assert task.TITLE and task.FOLDERS and task.MARKS
    assert 1 <= task.MAX_TOKENS <= 1024
    assert isinstance(task.WHOLE_GROUPS, bool)
    assert callable(task.read) and callable(task.score) and callable(task.metrics)


def test_the_miniatures_hold_no_more_than_the_readme_says() -> None:
    assert {path.name for path in DATA.iterdir()} == {
        *("README.md", "answers.json"),
        *(tasks.find(name).FOLDERS[0] for name in TASKS),
    }
