// Draws every figure from the JSON beside it, in the colours of the theme, and again when the theme or the width changes.
"use strict";
const root = document.documentElement;
const dark = matchMedia("(prefers-color-scheme: dark)");
const printing = matchMedia("print");
const isDark = () => !printing.matches && (root.dataset.theme || (dark.matches ? "dark" : "light")) === "dark";
function draw() {
  const ink = isDark() ? "#e8eaed" : "#16191d", rule = isDark() ? "#353c46" : "#d9dde3";
  const font = { color: ink, size: 12, family: getComputedStyle(document.body).fontFamily };
  for (const box of document.querySelectorAll(".figure")) {
    const text = box.nextElementSibling.textContent;
    // Black is the teacher's colour, which a dark page would hide.
    const figure = JSON.parse(text, (key, value) => (value === "#000000" ? ink : value));
    const layout = figure.layout, axis = { gridcolor: rule, zerolinecolor: rule, linecolor: rule };
    layout.xaxis = { ...layout.xaxis, ...axis };
    layout.yaxis = { ...layout.yaxis, ...axis };
    Object.assign(layout, { paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font });
    // Paper has another width, of which no resize tells.
    if (printing.matches) layout.width = box.clientWidth - 12;
    Plotly.react(box, figure.data, layout, { responsive: true, displayModeBar: false });
  }
}
document.getElementById("theme").addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  draw();
});
for (const button of document.querySelectorAll(".walk")) {
  // Where `tdistill explore` listens as a rule; only a click goes there.
  button.addEventListener("click", () => window.open("http://127.0.0.1:7860/" + button.dataset.place));
}
dark.addEventListener("change", draw);
printing.addEventListener("change", draw);
draw();
