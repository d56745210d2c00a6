"""The synthetic family: what a head looks like, what its truth says, and that nothing tells on anybody by accident."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import nibabel
import numpy as np
import pytest

from neuroprior.core.headmask import head_mask
from neuroprior.readers import synthetic
from neuroprior.readers._heads.anatomy import LESION_LABELS, Anatomy, displacement, see, traits
from neuroprior.readers._heads.contrasts import ideal
from neuroprior.readers._heads.fields import affine, flow, rotation, smooth_noise
from neuroprior.readers._heads.options import CONTRASTS, Options
from neuroprior.readers._heads.person import person
from neuroprior.readers._heads.scanners import SCANNERS, Acquired, head_pose, plan
from neuroprior.readers._heads.subject import SyntheticSubject, make_subject, scanners_of, true_volumes
from neuroprior.readers._heads.template import EXTENT_MM, ORIGIN_MM, REGIONS, VENTRICLES, template
from neuroprior.stages.synthesise import synthesise

LABEL = {name: number for number, (name, _) in REGIONS.items()}


@lru_cache(maxsize=8)
def subject(health: str, sessions: int = 1, skull: bool = True) -> SyntheticSubject:
    lesions = (health,) if health != "healthy" else ()
    options = Options(spacing_mm=3.0, contrasts=CONTRASTS, healthy=0.0, lesions=lesions, sessions=sessions, skull=skull, seed=5)
    return make_subject(options, 2)


def anatomy_at(spacing_mm: float, number: int) -> Anatomy:
    """A healthy head, upright, on a grid of its own."""
    options, maps = Options(spacing_mm=spacing_mm, healthy=1.0), template(spacing_mm)
    who = person(options, number)
    own = traits(options, who, maps)
    shape = tuple(int(extent / spacing_mm) for extent in EXTENT_MM)
    upright = affine(np.eye(3) * spacing_mm, np.asarray(ORIGIN_MM))
    return see(own, maps, (shape[0], shape[1], shape[2]), upright, displacement(own, who.age, 0.0), who.age, 0.0)


def on_labels(scan: Acquired, labels: Acquired) -> np.ndarray:
    """The scan sampled at the voxels of the label map, by their headers."""
    from scipy import ndimage

    to_scan = np.linalg.inv(scan.affine) @ labels.affine
    return ndimage.affine_transform(
        scan.voxels.astype(np.float32), to_scan, output_shape=labels.voxels.shape, order=1, cval=np.nan
    )


def median_of(subject: SyntheticSubject, contrast: str, where: np.ndarray) -> float:
    sitting = subject.sittings[0]
    return float(np.nanmedian(on_labels(sitting.scans[contrast], sitting.labels)[where]))


def deep(mask: np.ndarray) -> np.ndarray:
    """The voxels all of whose neighbours belong to the mask too."""
    from scipy import ndimage

    return ndimage.binary_erosion(mask)


@pytest.mark.parametrize(
    ("contrast", "order"),
    [
        ("T1w", "WM GM CSF"),
        ("T1ce", "WM GM CSF"),
        ("T2w", "CSF GM WM"),
        ("FLAIR", "GM WM CSF"),
        ("DWI", "GM WM CSF"),
        ("ADC", "CSF GM"),
    ],
)
def test_scans_order_the_tissues_as_the_physics_says(contrast: str, order: str) -> None:
    head = subject("healthy")
    labels = head.sittings[0].labels.voxels
    where = {
        "CSF": deep(np.isin(labels, [LABEL["left-ventricle"], LABEL["right-ventricle"]])),
        "GM": deep(np.isin(labels, [n for n, (_, tissue) in REGIONS.items() if tissue == "GM"])),  # no partial volume
        "WM": deep(np.isin(labels, [5, 6])),
    }
    values = [median_of(head, contrast, where[tissue]) for tissue in order.split()]
    assert values == sorted(values, reverse=True), dict(zip(order.split(), values, strict=True))
    if contrast == "ADC":
        assert values[0] > 2 * values[1]


def test_ideal_images_order_the_tissues_as_the_physics_says() -> None:
    head = anatomy_at(4.0, 2)
    tissue = {kind: np.isin(head.labels, [n for n, (_, k) in REGIONS.items() if k == kind]) for kind in ("GM", "WM")}
    tissue["CSF"] = deep(np.isin(head.labels, VENTRICLES))
    orders = {
        "T1w": "WM GM CSF", "T1ce": "WM GM CSF", "T2w": "CSF GM WM", "FLAIR": "GM WM CSF", "PDw": "GM WM", "DWI": "GM WM CSF",
        "ADC": "CSF GM WM", "SWI": "CSF GM WM",
    }  # fmt: skip
    assert set(orders) == set(CONTRASTS)
    for contrast, order in orders.items():
        image = ideal(head, contrast)
        values = [float(np.median(image[tissue[kind]])) for kind in order.split()]
        assert values == sorted(values, reverse=True), (contrast, order, values)
        assert image.min() >= 0 and np.isfinite(image).all()


@pytest.mark.parametrize(
    ("health", "part", "bright", "dark"),
    [
        ("wmh", "wmh", ("FLAIR", "T2w"), ("T1w",)),
        ("infarct", "infarct", ("DWI", "FLAIR"), ("ADC", "T1w")),
        ("tumour", "enhancing", ("T1ce",), ()),
        ("tumour", "oedema", ("FLAIR", "T2w"), ("T1w",)),
    ],
)
def test_only_some_contrasts_show_a_lesion(health: str, part: str, bright: tuple[str, ...], dark: tuple[str, ...]) -> None:
    head = subject(health)
    sitting = head.sittings[0]
    number = {name: k for k, name in LESION_LABELS.items()}[part]
    lesion = sitting.lesion.voxels == number
    assert lesion.sum() > 20
    around = np.isin(sitting.labels.voxels, (5, 6)) & (sitting.lesion.voxels == 0)
    for contrast in bright:
        assert median_of(head, contrast, lesion) > 1.1 * median_of(head, contrast, around), contrast
    for contrast in dark:
        assert median_of(head, contrast, lesion) < 0.97 * median_of(head, contrast, around), contrast
    shown = sitting.volumes_ml[f"lesion-{part}"]
    assert shown == pytest.approx(lesion.sum() * 0.027, rel=0.02)


def test_the_healthy_have_no_lesion_and_the_truth_counts_voxels() -> None:
    sitting = subject("healthy").sittings[0]
    assert not sitting.lesion.voxels.any()
    for number, (name, _) in REGIONS.items():
        if name != "csf":
            assert sitting.volumes_ml[name] == pytest.approx((sitting.labels.voxels == number).sum() * 0.027, abs=0.01)
    assert set(np.unique(sitting.labels.voxels)) == {0, *REGIONS}
    assert np.array_equal(sitting.labels.voxels > 0, sitting.brain_mask.voxels > 0)
    assert sitting.labels.voxels.shape == sitting.scans["T1w"].voxels.shape
    np.testing.assert_allclose(sitting.labels.affine, sitting.scans["T1w"].affine)


def test_left_is_left() -> None:
    sitting = subject("healthy").sittings[0]
    for left in range(5, 21, 2):
        places = [
            (sitting.labels.affine @ np.append(np.argwhere(sitting.labels.voxels == n).mean(0), 1))[0] for n in (left, left + 1)
        ]
        assert places[0] < places[1]


def test_time_widens_ventricles_and_grows_lesions() -> None:
    head = subject("wmh", sessions=4)
    assert [sitting.session for sitting in head.sittings] == ["ses-01", "ses-02", "ses-03", "ses-04"]
    first, last = head.sittings[0], head.sittings[-1]
    assert last.age >= first.age + 3
    assert last.volumes_ml["ventricles"] > first.volumes_ml["ventricles"]
    assert last.volumes_ml["lesion"] > 1.1 * first.volumes_ml["lesion"]
    assert last.volumes_ml["intracranial"] == pytest.approx(first.volumes_ml["intracranial"], rel=0.01)


def test_stripped_scans_have_no_scalp_and_each_its_own_outline() -> None:
    sitting = subject("healthy", skull=False).sittings[0]
    brain = sitting.brain_mask.voxels > 0
    outlines = [np.nan_to_num(on_labels(sitting.scans[name], sitting.labels)) > 0 for name in ("T1w", "T2w", "FLAIR")]
    for outline in outlines:
        assert (outline & brain).sum() > 0.93 * brain.sum()
        assert outline.sum() < 1.35 * brain.sum()
    assert (outlines[0] != outlines[1]).sum() > 0.01 * brain.sum()


def test_a_subject_depends_on_seed_and_number_alone() -> None:
    options = Options(spacing_mm=6.0, contrasts=("T1w", "FLAIR"))
    one, again, other = make_subject(options, 3), make_subject(options, 3), make_subject(options, 4)
    assert one.person == again.person
    for name in options.contrasts:
        assert np.array_equal(one.sittings[0].scans[name].voxels, again.sittings[0].scans[name].voxels)
    alone = make_subject(options.model_copy(update={"contrasts": ("FLAIR",)}), 3)
    assert alone.person == one.person
    assert one.sittings[0].volumes_ml != other.sittings[0].volumes_ml


def test_volumes_tell_the_age() -> None:
    """A ridge on the true volumes explains at least 70 % of age's variance in unseen subjects, lesions and all."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import KFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    options = Options(spacing_mm=4.0)
    volumes = [true_volumes(options, number) for number in range(1, 61)]
    names = [name for name in volumes[0] if not name.startswith("lesion")]
    features = np.array([[row[name] / row["intracranial"] ** (name != "intracranial") for name in names] for row in volumes])
    people = [person(options, number) for number in range(1, 61)]
    age = np.array([one.age for one in people])
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-2, 3, 11)))
    guess = cross_val_predict(ridge, features, age, cv=KFold(10, shuffle=True, random_state=0))
    explained = 1 - ((guess - age) ** 2).sum() / ((age - age.mean()) ** 2).sum()
    assert explained >= 0.7, explained
    size = features[:, names.index("intracranial")]
    male = np.array([one.sex == "M" for one in people])
    assert size[male].mean() > size[~male].mean() + size.std() * 0.7
    atrophy = features[:, names.index("gm")]
    ill = np.array([one.health != "healthy" for one in people])
    assert abs(np.corrcoef(ill, age)[0, 1]) < 0.3
    assert np.corrcoef(atrophy, age)[0, 1] < -0.6


def test_numbers_scanners_and_boxes_tell_nothing() -> None:
    options = Options()
    people = [person(options, number) for number in range(1, 401)]
    columns = {
        "number": [one.number for one in people],
        "age": [one.age for one in people],
        "sex": [one.sex == "M" for one in people],
        "health": [one.health != "healthy" for one in people],
        "scanner": [SCANNERS.index(scanners_of(options, one)[0][0]) for one in people],
    }
    together = np.corrcoef(np.array(list(columns.values()), dtype=float))
    assert np.abs(together - np.eye(len(columns))).max() < 0.17  # 3.4 standard errors
    sizes = []
    for seed in (1, 2):  # the same draw of a box, whatever the head's pose
        pose = head_pose(np.random.default_rng(seed))
        drawn = plan(SCANNERS[0], "T2w", 2.0, pose, np.random.default_rng(7), reference=False, skull=True)
        sizes.append(drawn.shape)
        corner = np.array([60.0, 60.0, 60.0, 1.0])
        moved = np.linalg.norm((drawn.motion @ corner - corner)[:3])
        assert 0.05 < moved < 5
    assert sizes[0] == sizes[1]


def test_shortcuts_are_there_when_asked_for() -> None:
    ordered = Options(shortcut="order", subjects_for_order=20)
    ages = [person(ordered, number).age for number in range(1, 21)]
    assert ages == sorted(ages)
    sites = Options(shortcut="site")
    seen = {True: set(), False: set()}
    for number in range(1, 60):
        one = person(sites, number)
        seen[one.health == "healthy"].add(scanners_of(sites, one)[0][0].name)
    assert not seen[True] & seen[False]


@pytest.mark.parametrize("shortcut", ["spacing", "background", "skull", "name"])
def test_a_shortcut_changes_the_ill_in_one_way_and_the_healthy_in_none(shortcut: str) -> None:
    settings = {"spacing_mm": 5.0, "contrasts": ("T1w",), "lesions": ("wmh",), "seed": 2}
    without, built = Options.model_validate(settings), Options.model_validate({**settings, "shortcut": shortcut})
    who = {person(without, number).health: number for number in range(1, 12)}
    seen = {health: (make_subject(without, number), make_subject(built, number)) for health, number in who.items()}
    plain, built_in = (subject.sittings[0].scans["T1w"] for subject in seen["healthy"])
    assert np.array_equal(plain.voxels, built_in.voxels) and np.array_equal(plain.affine, built_in.affine)
    assert seen["healthy"][1].person.name[4] == ("C" if shortcut == "name" else "0")
    plain, built_in = (subject.sittings[0].scans["T1w"] for subject in seen["wmh"])
    true, now = (subject.sittings[0].volumes_ml for subject in seen["wmh"])
    assert now["intracranial"] == pytest.approx(true["intracranial"], rel=0.03)
    ratio = np.linalg.norm(built_in.affine[:3, 0]) / np.linalg.norm(plain.affine[:3, 0])
    assert ratio == pytest.approx(1.1 if shortcut == "spacing" else 1.0)
    if shortcut == "name":
        assert np.array_equal(plain.voxels, built_in.voxels) and seen["wmh"][1].person.name[4] == "P"
    elif shortcut == "skull":
        heads = [head_mask(scan.voxels.astype(np.float32), (5.0, 5.0, 5.0)).sum() for scan in (built_in, plain)]
        assert heads[0] < 0.7 * heads[1]
    elif shortcut == "background":
        corner = (slice(0, 3),) * 3
        assert built_in.voxels[corner].mean() > 1.2 * plain.voxels[corner].mean()
        bright = plain.voxels > np.percentile(plain.voxels, 90)
        assert np.array_equal(plain.voxels[bright], built_in.voxels[bright])


def test_reads_as_bids_with_the_true_volumes(tmp_path: Path) -> None:
    root = tmp_path / "family"
    synthesise(root, subjects=2, spacing=6.0, contrasts="FLAIR,T1ce,DWI,SWI", sessions=2, workers=1, progress=False)
    assert synthetic.recognises(root)
    assert synthetic.recognises(tmp_path) is None
    scans = list(synthetic.read(root))
    assert len(scans) == 2 * 2 * 4
    assert {scan.contrast for scan in scans} == {"FLAIR", "T1ce", "DWI", "SWI"}
    for scan in scans:
        assert scan.status == "ok", scan.reasons
        assert scan.age is not None and scan.sex in ("F", "M") and scan.health and scan.site and scan.scanner
        assert set(scan.labels) >= {"dseg", "lesion"} and scan.brain_mask
        assert scan.columns["true_intracranial_ml"] > 900
    flair = next(scan for scan in scans if scan.contrast == "FLAIR")
    image, labels = nibabel.nifti1.load(flair.path), nibabel.nifti1.load(flair.labels["dseg"])
    assert image.shape == labels.shape
    np.testing.assert_allclose(image.affine, labels.affine)


def test_flow_is_invertible_and_noise_does_not_depend_on_the_grid() -> None:
    rng = np.random.default_rng(0)
    velocity = np.stack([2.5 * smooth_noise((20, 22, 24), 6.0, 25.0, rng) for _ in range(3)])
    there, back = flow(velocity, 6.0), flow(-velocity, 6.0)
    from scipy import ndimage

    where = np.indices(velocity.shape[1:]) + there / 6.0
    again = there + np.stack([ndimage.map_coordinates(part, where, order=1, mode="nearest") for part in back])
    core = (slice(None), *(slice(4, -4),) * 3)
    assert np.abs(again[core]).mean() < 0.05 * np.abs(there[core]).mean()
    jacobian = [np.gradient(there[i], 6.0, axis=j) + (i == j) for i in range(3) for j in range(3)]
    assert np.linalg.det(np.stack(jacobian, -1).reshape(*velocity.shape[1:], 3, 3)).min() > 0

    coarse = smooth_noise((11, 11, 11), 4.0, 9.0, np.random.default_rng(1))
    fine = smooth_noise((21, 21, 21), 2.0, 9.0, np.random.default_rng(1))
    np.testing.assert_allclose(fine[::2, ::2, ::2], coarse, atol=1e-4)
    assert smooth_noise((60, 60, 60), 2.0, 6.0, rng).std() == pytest.approx(1, abs=0.1)
    turn = rotation(np.array([10.0, -20.0, 30.0]))
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turn) == pytest.approx(1)


def test_anatomy_is_the_same_at_every_spacing() -> None:
    coarse, fine = true_volumes(Options(spacing_mm=4.0), 3), true_volumes(Options(spacing_mm=2.0), 3)
    for name in ("intracranial", "gm", "wm", "ventricles"):
        assert coarse[name] == pytest.approx(fine[name], rel=0.05 if name == "intracranial" else 0.2), name
