"""The page of a comparison: every section, nothing asked of a network, nothing unescaped, and drawn in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.__main__ import _parse, main
from experiments.compare import compare
from experiments.config import CompareConfig, DistillConfig
from experiments.page import figures
from experiments.page.page import command, in_script, markdown, page
from experiments.page.rebuild import rows_of
from experiments.page.replies import place_of, ranked, tinted
from experiments.report import Row, colours_of
from tests.experiments.runs import small

EVIL = "</script><script>alert('x')</script><b>&"
HEADINGS = {
    "curves": "Learning curves",
    "masses": "Mass of the candidate sets",
    "gamma": "Discount",
    "profiles": "Performance profiles",
    "frontier": "Quality and what it takes",
    "slices": "Parts of the prompts",
    "positions": "Along the reply",
    "calibration": "Calibration",
    "replies": "Worst cases",
}


def rows(top_p: tuple[float, ...] = (0.5, 0.9)) -> list[Row]:
    """Two seeds of bc and of soft_q at two γ, and the teacher, with everything that a cell can give."""
    found = []
    for p in top_p:
        measures = {"forward_kl": 0.0, "task_score": 1.0, "leak": 0.1, "speed_up": 1.0}
        found.append(Row("teacher", 0, p, 0, {}, measures, []))
        for number, agent in enumerate(("bc", "soft_q", "soft_q@gamma=0")):
            for seed in (0, 1):
                own = {
                    "forward_kl": 0.2 + 0.1 * number + 0.01 * seed,
                    "task_score": 0.5 - 0.1 * number,
                    "speed_up": 4.0,
                }
                points = [{"updates": u, "seconds": 0.5 * u, "forward_kl": 1.0 - 0.02 * u} for u in (0, 10, 20)]
                costs = {"seconds": 10.0, "tokens": 4000.0, "flops": 3e9}
                found.append(Row(agent, seed, p, 20, costs, own, points, more()))
    return found


def more() -> dict[str, Any]:
    return {
        "slices": {EVIL: {"prompts": 3, "forward_kl": 0.2}, "critical": {"prompts": 2, "forward_kl": 0.4}},
        "positions": {"forward_kl": [0.1, 0.3], "leak": [0.0, 0.1], "count": [2, 1]},
        "calibration": {"confidence": [0.0, 0.4], "accuracy": [0.0, 0.5], "count": [0, 6]},
    }


def replies() -> dict[str, list[dict[str, Any]]]:
    tokens = [[EVIL, -0.5, True], [" out", -9.0, False]]
    entry = {"reference": EVIL, "tags": [EVIL], "teacher": EVIL, "student": EVIL, "tokens": tokens}
    return {"bc": [{**entry, "prompt": f"{EVIL} {number}", "score": score} for number, score in enumerate((0.4, 0.9))]}


def profiles() -> figures.Profiles:
    return [0.0, 0.5, 1.0], {"bc": ([1.0, 0.5, 0.0], [0.9, 0.4, 0.0], [1.0, 0.6, 0.1])}


def whole(**changes: Any) -> str:
    config = CompareConfig(agents=("bc", "soft_q", "soft_q@gamma=0"), top_p=(0.5, 0.9), out=Path(EVIL.replace("/", "")))
    return page(rows(), config, **{"replies": replies(), "profiles": profiles(), "notes": [EVIL], **changes})


def own_part(html: str) -> str:
    """The page without plotly's own code."""
    return html[: html.rindex("</main>")]


def drawn(html: str) -> list[dict[str, Any]]:
    return [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', html, re.S)]


def test_every_section_is_there_and_its_figures_are_plotlys() -> None:
    import plotly.graph_objects as go

    html = whole()
    for heading in ("Results", *HEADINGS.values(), "Best cases", "Sample replies", "Settings", "To repeat it"):
        assert f"<h2>{heading}</h2>" in html
    found = drawn(html)
    # Curves of KL; three measures by top_p, two by γ; profiles; frontiers, two by two; slices; along the reply; bins.
    assert len(found) == 3 + 3 + 2 + 1 + 4 + 1 + 2 + 1 == html.count('<div class="figure"></div>')
    for figure in found:
        go.Figure(figure)  # raises at a property that plotly does not know


def test_what_a_run_lacks_has_no_section() -> None:
    bare = [Row("teacher", 0, 0.9, 0, {}, {"forward_kl": 0.0}, []), Row("bc", 0, 0.9, 5, {}, {"forward_kl": 0.2}, [])]
    html = page(bare, CompareConfig(agents=("bc",)))
    assert re.findall("<h2>(.*?)</h2>", html) == ["Results", "Settings", "To repeat it"] and not drawn(html)


def test_nothing_is_asked_of_a_network() -> None:
    html = whole()
    assert "default-src 'none'" in html
    elements = re.sub(r"<script.*?</script>", "", html, flags=re.S)
    assert set(re.findall(r'(?:src|href)="([^"]*)"', elements)) <= {"data:,", *(f"#part{n}" for n in range(30))}
    assert not re.search(r"https?://|@import|url\(", own_part(html))


def test_no_content_becomes_markup() -> None:
    html = own_part(whole())
    assert "alert(" in html and "<script>alert" not in html and "<b>&" not in html
    assert json.loads(in_script({"a": EVIL, "b": float("nan")})) == {"a": EVIL, "b": None}
    assert "</" not in in_script(EVIL)
    assert markdown("| a |\n| - |\n| <b> |\n\nx < y") == (
        '<div class="wide"><table><thead><tr><th>a</th></tr></thead><tbody><tr><td>&lt;b&gt;</td></tr></tbody></table>'
        "</div><p>x &lt; y</p>"
    )


def test_an_agent_has_one_colour_everywhere() -> None:
    colours = colours_of(rows())
    assert len(set(colours.values())) == len(colours) and colours["teacher"] == "#000000"
    for figure in drawn(whole()):
        for trace in figure["data"]:
            agent = trace.get("name", "").split(", p = ")[0]
            if agent in colours:
                assert trace["line"]["color"] == colours[agent]


def test_curves_against_tokens_and_seconds() -> None:
    """4,000 tokens in 20 updates: 2,000 after 10; half a second each: 5. KL 1.0, 0.8, 0.6 of both seeds."""
    against = figures.curves(rows((0.9,)), colours_of(rows()))
    lines = [next(t for t in figure["data"] if t.get("name") == "bc, p = 0.9") for figure in against]
    assert [line["x"] for line in lines] == [[0, 10, 20], [0, 2000, 4000], [0, 5, 10]]
    assert lines[0]["y"] == pytest.approx([1.0, 0.8, 0.6])


def test_a_discount_sweep_joins_the_arms_of_an_agent() -> None:
    """γ = 0 of its arm, 1 as usual: KL 0.4 + 0.01 · {0, 1} and 0.3 + 0.01 · {0, 1}, means 0.405 and 0.305."""
    (line,) = figures.gamma_sweep(rows((0.9,)), colours_of(rows()), 1.0)[0]["data"]
    assert (line["name"], line["x"]) == ("soft_q", [0.0, 1.0]) and line["y"] == pytest.approx([0.405, 0.305])


def test_a_line_that_no_arm_has_is_named_above_its_figures() -> None:
    """The sweep of γ joins soft_q and soft_q@gamma=0; with arms of γ = 0 and 1 alone its line is nobody else's."""
    found = [replace(row, agent="soft_q@gamma=1") if row.agent == "soft_q" else row for row in rows((0.9,))]
    html = own_part(page(found, CompareConfig(agents=("bc", "soft_q@gamma=0", "soft_q@gamma=1"))))
    part = html[html.index("<h2>Discount</h2>") :]
    assert "</i>soft_q</li>" in part[: part.index("</ul>")] and "ideal</li>" not in html


def test_profiles_of_a_smaller_mass_are_dashed() -> None:
    one = ([1.0], [1.0], [1.0])
    figure = figures.profiles_figure(([0.0], {"bc, p = 0.5": one, "bc, p = 0.9": one}), {"bc": "#0072B2"})
    assert [line["line"]["dash"] for line in figure["data"] if "name" in line] == ["dash", "solid"]
    (line,) = (t for t in figures.profiles_figure(([0.0], {"bc": one}), {})["data"] if "name" in t)
    assert line["line"]["dash"] == "solid"


def test_paper_is_white() -> None:
    """Dark colours are the screen's alone, whatever theme was chosen."""
    css = (Path(figures.__file__).parent / "page.css").read_text(encoding="utf-8")
    blocks = re.findall(r"(@media [^{]*)\{((?:[^{}]*\{[^{}]*\})*[^{}]*)\}", css)
    dark = [query for query, block in blocks if "#14171b" in block]
    assert len(dark) == css.count("#14171b") == 2 and all(query.startswith("@media screen") for query in dark)


def test_series_are_pooled_by_their_counts() -> None:
    """(1·1 + 3·3)/4 = 2.5 at the first place; the second is in one alone, and the third was never counted."""
    assert figures.pooled([[1.0, 4.0, 7.0], [3.0]], [[1, 2, 0], [3]]) == [2.5, 4.0, None]


def test_tokens_are_tinted_by_the_teachers_log_probability() -> None:
    """−3 of at most 6 nats is half of the tint; below −6 it is whole."""
    assert 'class="tok" style="--t:50%" title="-3.00 nats">&lt;i&gt;<' in tinted([["<i>", -3.0, True]])
    assert 'class="tok out" style="--t:100%" title="-9.00 nats, outside the nucleus">x<' in tinted([["x", -9.0, False]])


def test_a_reply_leads_into_the_explorer() -> None:
    assert place_of("A b?", "c & d") == "?prompt=A+b%3F&reply=c+%26+d"
    html = whole()
    assert html.count('class="walk"') == html.count("<h4>bc ") > 0 and 'data-place="?prompt=%3C%2Fscript' in html


def test_cases_are_ranked_by_score_or_by_the_teachers_opinion() -> None:
    def said(*logps: float) -> dict[str, Any]:
        return {"score": None, "tokens": [["x", logp, True] for logp in logps]}

    assert ranked({"a": [{"score": 0.9}, {"score": 0.1}], "b": [{"score": 0.5}, {"score": 0.7}]}) == [1, 0]
    assert ranked({"a": [said(-1.0, -3.0), said(-5.0), said(-1.0), {"score": None, "tokens": []}]}) == [1, 0, 2]


@pytest.mark.parametrize(
    "config",
    [
        CompareConfig(agents=("bc", "soft_q@gamma=0"), top_p=(0.5, 0.9), lora=2, skip_bad=True, out=Path("a b")),
        DistillConfig(agent="kd", seed=3, prompts=Path("p.txt"), agent_config=("kd.lr=3e-4",), max_prompt_tokens=9),
    ],
)
def test_the_command_gives_the_same_settings(config: CompareConfig | DistillConfig) -> None:
    import shlex

    name, kind, *words = shlex.split(command(config))
    assert (name, kind) == ("tdistill", "compare" if isinstance(config, CompareConfig) else "distill")
    assert _parse(type(config), kind, words) == config


def test_a_run_is_reported_again_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small(tmp_path, seeds=2)
    rows = compare(config)
    assert rows_of(config.out) == rows
    written = [(config.out / name) for name in ("results.csv", "results.md", "report.html")]
    before = [path.read_bytes() for path in written]
    for path in written[1:]:
        path.unlink()
    monkeypatch.setattr("experiments.workspace.load_teacher", None)  # no model is loaded
    moved = config.out.rename(tmp_path / "moved")
    assert main(["report", str(moved)]) == 0
    assert str(moved / "report.html") in capsys.readouterr().out
    after = [(moved / path.name).read_bytes() for path in written]
    assert after[:2] == before[:2]
    assert own_part(after[2].decode()).replace("moved", "run") == own_part(before[2].decode())
    settings = moved / "config.yaml"  # of a machine with other devices than this one
    settings.write_text(
        settings.read_text(encoding="utf-8").replace("device: cpu", "device: cuda:99"), encoding="utf-8"
    )
    assert main(["report", str(moved)]) == 0
    assert "--device cuda:99" in (moved / "report.html").read_text(encoding="utf-8")
    assert main(["report", str(tmp_path)]) == 2 and "no run folder" in capsys.readouterr().err
    (moved / "results.csv").unlink()
    assert main(["report", "--run", str(moved)]) == 2 and "nothing has finished" in capsys.readouterr().err


PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  const boxes = [...document.querySelectorAll(".figure")];
  const asked = performance.getEntriesByType("resource").map((entry) => entry.name);
  parent.postMessage(JSON.stringify({figures: boxes.length, width: document.documentElement.scrollWidth,
    drawn: boxes.filter((box) => box.querySelector("svg .trace")).length,
    asked: asked.filter((name) => !name.startsWith("data:"))}), "*");
}, 1000));</script>"""
FRAME = """<script>addEventListener("message", (event) => { document.body.dataset.found = event.data; });</script>
<iframe src="page.html" style="width:%dpx;height:900px;border:0"></iframe>"""


def browse(path: Path) -> tuple[str, str]:
    """The document that Chromium makes of a file, and what its console says."""
    browser = shutil.which("chromium")
    assert browser, "the page is tested in Chromium, which is not installed: apt-get install chromium"
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--virtual-time-budget=20000"]
    done = subprocess.run(
        [browser, *words, "--window-size=1280,900", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=1100,
        check=True,
    )
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


@pytest.mark.long
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_a_browser_draws_the_page(tmp_path: Path, width: int, theme: str) -> None:
    """Every figure has its plot, the console is silent, nothing is asked for, and nothing is wider than the window."""
    html = whole().replace('lang="en"', f'lang="en" data-theme="{theme}"').replace("</main>", f"</main>{PROBE}")
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    (tmp_path / "frame.html").write_text(FRAME % width, encoding="utf-8")
    document, console = browse(tmp_path / "frame.html")
    assert not console
    (found,) = re.findall(r'data-found="([^"]*)"', document)
    seen = json.loads(found.replace("&quot;", '"'))
    assert seen["figures"] == seen["drawn"] == 17
    assert seen["width"] <= width and seen["asked"] == []
