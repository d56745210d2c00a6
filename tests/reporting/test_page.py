"""The page itself: it can be read by keyboard, by screen reader, on paper and in the dark, needs no network, and its tables can be taken away."""

from __future__ import annotations

import base64
import io
import itertools
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tests.reporting.test_ranking import rows_of

from neuroprior.assessments._tables import write_scores
from neuroprior.assessments.accuracy import Context, segmentation_case, summarise
from neuroprior.core.errors import InputError
from neuroprior.core.records import Scan, Score
from neuroprior.reporting import scores as score_part
from neuroprior.stages.report import report

CASES = 30


class Page(HTMLParser):
    """Every element with its attributes, its text, and the names of the elements around it."""

    VOID = ("meta", "link", "img", "br", "line", "circle", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[dict[str, Any]] = []
        self._open: list[dict[str, Any]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, "inside": [e["tag"] for e in self._open], "text": "", **{k: v or "" for k, v in attrs}}
        self.elements.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if tag in self.VOID:
            return
        assert self._open and self._open[-1]["tag"] == tag, f"</{tag}> closes {[e['tag'] for e in self._open[-3:]]}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element["text"] += data

    def of(self, tag: str) -> list[dict[str, Any]]:
        return [element for element in self.elements if element["tag"] == tag]


def masks(model: str, shift: int) -> list[Score]:
    context = Context(model, "segmentation", "lesion", resamples=50)
    rows: list[Score] = []
    for k in range(CASES):
        truth, guess = np.zeros((12, 12, 12), int), np.zeros((12, 12, 12), int)
        if k % 3:
            truth[2:8, 2:8, 2 : 5 + k % 4] = 1
            guess[2 + shift : 8 + shift, 2:8, 2 : 5 + k % 3] = 1
        rows += segmentation_case(context, f"sub-{k:02}", f"sub-{k:02}", guess, truth, (1.0, 1.0, 1.0), {"lesion": 1})
    return rows + summarise(context, rows)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("sources")
    for number, (model, shift) in enumerate({"ours": 0, "scratch": 2}.items()):
        write_scores(masks(model, shift), folder / f"lesion-{number}.parquet", {"rule": "honest", "predictions": "p"})
        write_scores(rows_of(model, 0.3 * (1 - number), number, "ca"), folder / f"other-{number}.parquet", {"rule": "honest"})
    return [folder]


@pytest.fixture(scope="module")
def index_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the scored subjects: sex, age and a column with a name for each."""
    path = tmp_path_factory.mktemp("index") / "index.parquet"
    from neuroprior.data.index import write_index

    scans = [
        Scan(
            f"d/{name}_T1w", "d", name, "", "T1w", "T1w", f"/nowhere/{name}.nii.gz", age=20.0 + 2 * k, sex="FM"[k % 2],
            site="rare" if k < 2 else "usual",
        )
        for prefix in ("sub-", "s")
        for k in range(CASES)
        for name in [f"{prefix}{k:02}"]
    ]  # fmt: skip
    write_index(scans, path)
    return path


@pytest.fixture(scope="module")
def folder(sources: list[Path], index_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("report")
    report(sources, out, index=index_file, groups="sex,age,site")
    return out


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text())


def test_every_picture_says_what_it_shows(page: Page) -> None:
    from PIL import Image

    pictures = page.of("img")
    assert len(pictures) >= 15
    for picture in pictures:
        assert len(picture["alt"]) > 25, picture["alt"]
        assert Image.open(io.BytesIO(base64.b64decode(picture["src"].split(",")[1]))).format == "PNG"
    assert len({picture["alt"] for picture in pictures}) == len(pictures)


def test_the_first_stop_of_the_keyboard_skips_to_the_report(page: Page) -> None:
    stops = [e for e in page.elements if e["tag"] in ("a", "button", "summary") or e.get("tabindex") == "0"]
    assert stops[0].get("class") == "skip"
    assert any(e.get("id") == stops[0]["href"][1:] and e["tag"] == "main" for e in page.elements)
    assert not [e for e in page.elements if int(e.get("tabindex", 0)) > 0], "the order of the page is the order of the keys"


def test_tables_sort_by_buttons_and_have_names(page: Page) -> None:
    tables = [table for table in page.of("table") if "sortable" in table.get("class", "")]
    assert len(tables) >= 10
    heads = [th for th in page.of("th") if "thead" in th["inside"] and th.get("aria-sort")]
    buttons = [b for b in page.of("button") if b["inside"][-1] == "th"]
    assert len(heads) == len(buttons) > 50
    assert all(button["type"] == "button" and button["text"].strip() for button in buttons)
    assert all(th["scope"] == "col" and th["aria-sort"] == "none" for th in heads)
    assert len(page.of("caption")) == len(page.of("table"))
    for region in (e for e in page.of("div") if e.get("class") == "scroll"):
        assert region["tabindex"] == "0" and region["role"] == "region" and region["aria-label"]


def test_headings_go_down_step_by_step_and_links_lead_somewhere(page: Page) -> None:
    levels = [int(e["tag"][1]) for e in page.elements if re.fullmatch(r"h[1-6]", e["tag"])]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    ids = [e["id"] for e in page.elements if "id" in e]
    assert len(ids) == len(set(ids))
    assert {link["href"][1:] for link in page.of("a") if link["href"].startswith("#")} <= set(ids)
    assert page.of("html")[0]["lang"] == "en"
    assert page.of("nav")[0]["aria-label"]


def test_it_is_made_for_the_dark_for_paper_and_for_no_network(page: Page, folder: Path) -> None:
    text = (folder / "report.html").read_text()
    style = page.of("style")[0]["text"]
    assert "@media (prefers-color-scheme: dark)" in style
    assert next(e for e in page.of("meta") if e.get("name") == "color-scheme")["content"] == "light dark"
    printed = style[style.index("@media print") :]
    assert "--paper:#fff" in printed and "overflow: visible" in printed and "break-inside: avoid" in printed
    addresses = [e.get("src") or e.get("href") for e in page.elements if e.get("src") or e.get("href")]
    assert not [address for address in addresses if re.match(r"(https?:)?//", address)]
    assert "http" not in re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", text).replace("http://www.w3.org", "")


def test_colours_can_be_read(page: Page) -> None:
    """WCAG AA: 4.5 for text, on the paper and on the tint, in the light and in the dark."""

    def luminance(colour: str) -> float:
        digits = colour if len(colour) == 7 else "#" + "".join(2 * c for c in colour[1:])
        parts = [int(digits[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        r, g, b = (c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    palettes = re.findall(r":root \{([^}]*--ink[^}]*)\}", page.of("style")[0]["text"])
    assert len(palettes) == 3
    for palette in palettes:
        found = dict(re.findall(r"--(\w+):(#\w+)", palette))
        for front in ("ink", "soft", "accent", "bad"):
            for back in ("paper", "tint"):
                a, b = sorted((luminance(found[front]), luminance(found[back])))
                assert (b + 0.05) / (a + 0.05) >= 4.5, (front, back, found)


def test_the_tables_can_be_taken_away(page: Page, folder: Path, sources: list[Path]) -> None:
    links = {link["href"] for link in page.of("a") if "download" in link}
    assert links == {"scores.csv", "scores.parquet"}
    whole = pd.read_parquet(folder / "scores.parquet")
    assert len(whole) == sum(len(pd.read_parquet(path)) for path in sources[0].glob("*.parquet"))
    csv = pd.read_csv(folder / "scores.csv", keep_default_na=False, na_values={"value": [""], "low": [""], "high": [""]})
    pd.testing.assert_frame_equal(csv, whole, check_dtype=False)


def test_a_case_is_a_row_and_a_metric_a_column() -> None:
    frame = pd.DataFrame([vars(row) for row in masks("ours", 0) if row.case != "all"])
    table = score_part.case_table(frame, "lesion")
    assert len(table["rows"]) == CASES, f"{len(frame)} rows of scores"
    assert table["heads"][:3] == ["dice", "nsd", "hd95 mm"]
    assert all(len(row["cells"]) == len(table["heads"]) for row in table["rows"])
    row = next(row for row in table["rows"] if row["case"] == "sub-04")
    (dice,) = frame[(frame["case"] == "sub-04") & (frame["metric"] == "dice")]["value"]
    assert row["cells"][0] == f"{dice:.3f}"
    assert next(row for row in table["rows"] if row["case"] == "sub-00")["note"] == "both empty"
    many = pd.concat([frame.assign(case=frame["case"] + f"-{k}") for k in range(60)])
    table = score_part.case_table(many, "lesion")
    assert len(table["rows"]) == score_part.MAX_CASE_ROWS
    assert table["left_out"] == 60 * CASES - score_part.MAX_CASE_ROWS


def test_the_rule_for_empty_masks_is_printed(page: Page) -> None:
    (rule,) = [e for e in page.of("p") if "rule" in e.get("class", "").split()]
    assert "rule for empty masks: honest" in rule["text"]
    assert "both empty: dice, iou, nsd, hd95_mm, hd_mm, assd_mm not counted" in rule["text"]


def test_a_damaged_table_is_told_also_within_a_folder(sources: list[Path], tmp_path: Path) -> None:
    for name, content in (("short", b"PAR1"), ("text", b"hello, this is no table at all")):
        (tmp_path / name).mkdir()
        table = tmp_path / name / "scores.parquet"
        table.write_bytes(content)
        for source in (table, table.parent):
            with pytest.raises(InputError, match=r"(?s)the table cannot be read.*scores.parquet"):
                report([*sources, source], tmp_path / "report")


def test_groups_and_confusions_are_shown(page: Page, sources: list[Path], index_file: Path, tmp_path: Path) -> None:
    alts = [picture["alt"] for picture in page.of("img")]
    assert any(alt.startswith("Forest plot of dice") for alt in alts)
    assert any(alt.startswith("Confusion matrices. ours: ") for alt in alts)
    import json

    data = json.loads(report(sources, tmp_path, format="json", index=index_file, groups="sex,site").read_text())
    block = next(block for block in data["forests"] if block["metric"] == "dice")
    rows = {row[0]: row[1] for row in block["rows"]}
    assert list(rows) == ["all cases", "sex F", "sex M", "site rare", "site usual"]
    table = pd.read_parquet(sources[0] / "lesion-0.parquet")
    table = table[(table["metric"] == "dice") & (table["case"] != "all") & table["value"].notna()]
    women = table[table["case"].str[-2:].astype(int) % 2 == 0]
    assert rows["sex F"].startswith(f"{women['value'].mean():.3f} [")
    assert rows["sex F"].endswith(f"n={len(women)}")
    assert "[" not in rows["site rare"], "one subject has no interval"
    assert block["small"] == "No interval: site rare (fewer than three subjects)."
    assert any(line.startswith("ours by sex: worst in sex ") for line in block["gaps"])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium: apt-get install chromium")
def test_a_browser_finds_nothing_wrong_and_sorts(folder: Path, tmp_path: Path) -> None:
    text = (folder / "report.html").read_text()
    click = """<script>
const table = document.querySelector("table.cases");
for (const times of [1, 2]) {
  [...table.tHead.rows[0].cells].find(th => th.textContent.trim() === "dice").querySelector("button").click();
  document.body.dataset["sorted" + times] = [...table.tBodies[0].rows].map(row => row.cells[2].textContent).join(" ");
}
</script></body>"""
    copy = tmp_path / "page.html"
    copy.write_text(text.replace("</body>", click))
    done = subprocess.run(
        ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--v=0",
         "--virtual-time-budget=5000", "--dump-dom", copy.as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "CONSOLE" not in done.stderr, done.stderr
    found = re.search(r'data-sorted1="([^"]*)" data-sorted2="([^"]*)"', done.stdout)
    assert found, done.stdout[-500:]
    up, down = ([value for value in part.split() if value != "–"] for part in found.groups())
    assert up == sorted(up) and down == sorted(up, reverse=True) and len(set(up)) > 2
    assert found[1].endswith("–") and found[2].endswith("–"), "what is not defined stays last"
