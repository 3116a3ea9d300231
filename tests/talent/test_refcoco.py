"""RefCOCO from its published files: the right masks and sentences, nothing across splits, broken files explained."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from talent.data.refcoco import PUBLISHED, SIZES, RefCocoDataset
from talent.data.registry import REFCOCO, open_dataset
from talent.errors import UserError
from talent.image import read_image, save_image
from tests.talent import refcoco_files as files
from tests.talent.refcoco_files import rectangle, write_refcoco

pytestmark = pytest.mark.filterwarnings("ignore:.*as published, received:UserWarning")


@pytest.fixture
def root(tmp_path):
    return write_refcoco(tmp_path / "data")


def instances(root, folder: str = "refcoco"):
    return root / folder / "instances.json"


def change(root, edit) -> None:
    """Rewrite refcoco's instances.json."""
    content = json.loads(instances(root).read_text())
    edit(content)
    instances(root).write_text(json.dumps(content))


@pytest.mark.parametrize("protocol", [0, 2])
def test_samples_of_a_split(tmp_path, protocol):
    data = RefCocoDataset(write_refcoco(tmp_path, protocol=protocol), name="refcoco", split="train")
    assert len(data) == 3 and data.expression_count == 6 and data.picture_count == 1
    left, right, bag = data
    assert left.name == "refcoco train ref 100"
    assert left.expressions == ("left man", "man in blue")
    assert right.expressions == ("right man", "Left Man", "homme à droite")
    assert bag.expressions == ("The BAG",)
    size = files.SIZES[1]
    np.testing.assert_array_equal(left.mask, rectangle(size, 5, 4, 20, 30))
    np.testing.assert_array_equal(right.mask, rectangle(size, 30, 4, 40, 20) | rectangle(size, 45, 4, 50, 20))
    np.testing.assert_array_equal(bag.mask, rectangle(size, 50, 25, 61, 33))
    picture = read_image(tmp_path / "train2014" / "COCO_train2014_000000000001.jpg")
    for sample in data:
        assert sample.mask.dtype == bool
        np.testing.assert_array_equal(sample.image, picture)


def test_negatives_are_said_of_other_objects_and_not_of_the_target(root):
    left, right, bag = RefCocoDataset(root, name="refcoco", split="train")
    assert left.negatives == ("right man", "homme à droite", "The BAG")  # "Left Man" is said of the left one too
    assert right.negatives == ("man in blue", "The BAG")
    assert bag.negatives == ("left man", "man in blue", "right man", "Left Man", "homme à droite")


def test_others_are_of_the_category_and_no_crowd(root):
    left, right, bag = RefCocoDataset(root, name="refcoco", split="train")
    assert len(left.others) == len(right.others) == 1 and bag.others == ()
    np.testing.assert_array_equal(left.others[0], right.mask)
    np.testing.assert_array_equal(right.others[0], left.mask)
    crowd, = RefCocoDataset(root, name="refcoco", split="val")
    bag, = RefCocoDataset(root, name="refcoco", split="testA")
    assert bag.others == ()
    np.testing.assert_array_equal(crowd.mask, rectangle(files.SIZES[2], 0, 0, 33, 9))
    np.testing.assert_array_equal(crowd.others[0], bag.mask)


def test_splits_share_no_sentence(root):
    train, = RefCocoDataset(root, name="refcocog-google", split="train")
    val, = RefCocoDataset(root, name="refcocog-google", split="val")
    assert train.expressions == ("upper left",) and val.expressions == ("lower right",)
    assert train.negatives == val.negatives == ()  # though both objects are in one picture
    np.testing.assert_array_equal(train.others[0], val.mask)


def test_raw_text_stands_in_for_an_empty_sentence(root):
    assert RefCocoDataset(root, name="refcoco", split="testB")[0].expressions == ("bag below", "Raw")


def test_objects_count_once_for_refs_of_the_same_object(root):
    refs = [files.ref(number, files.things()[21], "val", text) for number, text in ((1, b"bag"), (2, b"sack"))]
    (root / "refcoco" / "refs(unc).p").write_bytes(files.python2_pickle(refs, 2))
    first, second = RefCocoDataset(root, name="refcoco", split="val")
    assert first.expressions == ("bag",) and first.negatives == second.negatives == ()


@pytest.mark.parametrize(("name", "split", "sentence"), [
    ("refcoco+", "val", "crowd at the top"), ("refcocog", "val", "crowd at the top"),
    ("refcocog-google", "train", "upper left"), ("refcocog-google", "val", "lower right")])
def test_every_data_set_has_its_file(root, name, split, sentence):
    assert open_dataset(name, split=split, size=1, root=root)[0].expressions == (sentence,)


def test_the_tables_know_every_data_set():
    assert tuple(PUBLISHED) == REFCOCO
    assert list(SIZES) == [(name, split) for name in REFCOCO for split in PUBLISHED[name].splits]
    # Totals of refs and sentences that the data sets' authors give.
    for name, refs, sentences in (("refcoco", 50_000, 142_210), ("refcoco+", 49_856, 141_564)):
        counts = [SIZES[name, split] for split in PUBLISHED[name].splits]
        assert (sum(count[0] for count in counts), sum(count[1] for count in counts)) == (refs, sentences)
    assert sum(SIZES["refcocog", split][0] for split in PUBLISHED["refcocog"].splits) == 49_822
    assert sum(SIZES["refcocog-google", split][0] for split in PUBLISHED["refcocog-google"].splits) == 49_822


@pytest.mark.parametrize("pictures", ["images/train2014", "images/mscoco/images/train2014"])
def test_pictures_lie_where_users_unpack_them(tmp_path, pictures):
    assert RefCocoDataset(write_refcoco(tmp_path, pictures=pictures), name="refcoco", split="val")[0].mask.any()


def test_pictures_are_named_by_instances_json(root):
    change(root, lambda content: content["images"][1].update(file_name="other.jpg"))
    data = RefCocoDataset(root, name="refcoco", split="val")
    with pytest.raises(UserError, match=r"refcoco val ref 200: no such picture: .*train2014/other.jpg"):
        data[0]
    save_image(root / "train2014" / "other.jpg", np.zeros((*files.SIZES[2], 3), np.uint8))
    assert data[0].image.max() == 0


def test_nothing_is_read_again_and_workers_can_have_it(root):
    data = RefCocoDataset(root, name="refcoco", split="train")
    for file in (instances(root), root / "refcoco" / "refs(unc).p"):
        file.unlink()
    copy = pickle.loads(pickle.dumps(data))
    assert copy.expression_count == 6
    for one, other in zip(data, copy, strict=True):
        np.testing.assert_array_equal(one.mask, other.mask)
        assert one.negatives == other.negatives and len(one.others) == len(other.others)


def test_other_sizes_than_published_warn(root):
    with pytest.warns(UserWarning, match="refcoco val: expected 3811 refs and 10834 sentences, as published, "
                                         "received 1 refs and 1 sentences"):
        RefCocoDataset(root, name="refcoco", split="val")
    with pytest.warns(UserWarning, match="expected 5000 refs, as published, received 1 refs and 1 sentences"):
        RefCocoDataset(root, name="refcocog-google", split="val")


def test_published_sizes_do_not_warn(root, monkeypatch, recwarn):
    for known in ((3, 7), (3, None)):
        monkeypatch.setitem(SIZES, ("refcoco", "train"), known)
        RefCocoDataset(root, name="refcoco", split="train")
    assert not recwarn.list


def test_a_ref_without_words_is_left_out(root):
    refs = [files.ref(number, files.things()[21], "val", text, raw=b" ") for number, text in ((1, b""), (2, b"bag"))]
    (root / "refcoco" / "refs(unc).p").write_bytes(files.python2_pickle(refs, 2))
    with pytest.warns(UserWarning, match="refcoco val ref 1 is left out: it has no words"):
        data = RefCocoDataset(root, name="refcoco", split="val")
    assert len(data) == 1 and data[0].name == "refcoco val ref 2"


def test_unknown_names_and_splits(root):
    with pytest.raises(UserError, match=r"unknown data set 'refcocoo'; did you mean 'refcoco'\?"):
        RefCocoDataset(root, name="refcocoo", split="val")
    with pytest.raises(UserError, match=r"refcoco has the splits train, val, testA, testB, received 'test'; did you"):
        RefCocoDataset(root, name="refcoco", split="test")
    with pytest.raises(UserError, match="refcocog-google has the splits train, val, received 'test'"):
        RefCocoDataset(root, name="refcocog-google", split="test")
    data = RefCocoDataset(root, name="refcoco", split="val")
    for index in (-1, 1):
        with pytest.raises(IndexError):
            data[index]


@pytest.mark.parametrize("name", REFCOCO)
@pytest.mark.parametrize("missing", ["refs", "instances.json", "pictures", "everything"])
def test_missing_files_are_named(tmp_path, name, missing):
    root = tmp_path / "data"
    published = PUBLISHED[name]
    if missing != "everything":
        write_refcoco(root)
    needed = {"refs": f"{published.folder}/{published.refs}", "instances.json": f"{published.folder}/instances.json",
              "pictures": "train2014", "everything": f"{published.folder}/{published.refs}"}[missing]
    if missing != "everything":
        (root / needed).rename(root / "elsewhere")
    with pytest.raises(UserError) as caught:
        RefCocoDataset(root, name=name, split="val")
    message = str(caught.value)
    kind = "folder" if missing == "pictures" else "file"
    assert f"{name} needs the {kind} {root / needed}, which does not exist" in message
    for part in (f"{published.folder}/{published.refs}", f"{published.folder}/instances.json", "train2014/",
                 "images/train2014/", "docs/data.md"):
        assert part in message


@pytest.mark.parametrize(("edit", "message"), [
    (lambda content: content["annotations"].pop(5), "refcoco val ref 200: .*no annotation 20 in a picture 2; .*same"),
    (lambda content: content["images"].pop(1), "refcoco val ref 200: .*no annotation 20 in a picture 2"),
    (lambda content: content.pop("images"), "missing 'images'"),
    (lambda content: content["annotations"][5].pop("category_id"), "missing 'category_id'"),
    (lambda content: content["annotations"][5].pop("segmentation"), "missing 'segmentation'"),
    (lambda content: content["images"][1].pop("file_name"), "missing 'file_name'"),
    (lambda content: content["images"][1].pop("height"), "missing 'height'"),
    (lambda content: content["images"][1].update(height="tall"), "expected COCO's instances as JSON .*'tall'"),
    (lambda content: content["images"][1].update(id=[2]), "expected COCO's instances as JSON .*unhashable"),
    (lambda content: content.update(annotations=5), "expected COCO's instances as JSON .*not iterable"),
])
def test_broken_instances_are_explained(root, edit, message):
    change(root, edit)
    with pytest.raises(UserError, match=message):
        RefCocoDataset(root, name="refcoco", split="val")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe\xfd", b"[" * 100_000, b"5"])
def test_instances_that_are_no_json_are_explained(root, content):
    instances(root).write_bytes(content)
    with pytest.raises(UserError, match="instances.json: expected COCO's instances as JSON .*download it again"):
        RefCocoDataset(root, name="refcoco", split="val")


def test_refs_of_another_split_only(root):
    refs = [files.ref(1, files.things()[21], "train", b"bag")]
    (root / "refcoco" / "refs(unc).p").write_bytes(files.python2_pickle(refs, 2))
    with pytest.raises(UserError, match=r"refs\(unc\).p has no ref of the split 'val'"):
        RefCocoDataset(root, name="refcoco", split="val")


def test_pictures_of_another_size_and_broken_ones(root):
    data = RefCocoDataset(root, name="refcoco", split="val")
    picture = root / "train2014" / "COCO_train2014_000000000002.jpg"
    save_image(picture, np.zeros((33, 52, 3), np.uint8))
    with pytest.raises(UserError, match="ref 200: expected a picture of 33 x 52 pixels.*received 52 x 33: .*002.jpg"):
        data[0]
    picture.write_bytes(b"no picture")
    with pytest.raises(UserError, match="refcoco val ref 200: not a picture"):
        data[0]


@pytest.mark.parametrize(("shape", "message"), [
    ([[1, 1, 9, 9]], r"ref 200: expected polygons .*received \[\]"),
    ({"size": [33, 52], "counts": [33 * 52]}, r"ref 200: expected run lengths of .*\[52, 33\]"),
    ([[1, 1, float("nan"), 9, 9, 1]], "ref 200: .*not a number"),
])
def test_broken_masks_are_explained(root, shape, message):
    change(root, lambda content: content["annotations"][5].update(segmentation=shape))
    with pytest.raises(UserError, match=message):
        RefCocoDataset(root, name="refcoco", split="val")[0]
