// The page's hands: clicks, keys and sliders become actions, and what the server draws finds its focus again.
"use strict";
window.explore = window.explore || { send: null, timer: 0, prompt: null, dragging: false, doing: null, waiting: [] };
// One action at a time: what comes meanwhile waits, unless it was meant for a state that is being left.
function exploreSend(action) {
  const page = window.explore;
  clearTimeout(page.timer);
  if (!page.send) return;
  if (page.doing) {
    const stale = ["take", "enter"].includes(action.do) && page.doing !== "outlook";
    if (!stale && page.waiting.length < 16) page.waiting.push(() => exploreSend(action));
    return;
  }
  page.doing = action.do;
  page.send(action);
}
function explorePanel(element, send) {
  const page = window.explore, root = document.documentElement;
  page.send = send;
  const find = (id) => element.querySelector("#x-" + id);
  const begin = () => exploreSend({ do: "open", prompt: find("prompt").value });
  element.querySelector("form").addEventListener("submit", (event) => { event.preventDefault(); begin(); });
  find("prompt").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); begin(); event.target.blur(); }
    if (event.key === "Escape") event.target.blur();
  });
  find("sample").addEventListener("change", (event) => {
    if (!event.target.value) return;
    find("prompt").value = event.target.value;
    event.target.value = "";
    begin();
  });
  for (const slider of element.querySelectorAll("input[type=range]")) {
    slider.addEventListener("input", () => {
      page.dragging = true;
      slider.nextElementSibling.value = Number(slider.value).toFixed(2);
    });
    slider.addEventListener("change", () => {
      page.dragging = false;
      exploreSend({ do: "set", name: slider.name, value: Number(slider.value) });
    });
  }
  const dark = matchMedia("(prefers-color-scheme: dark)");
  find("theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
  });
  if (page.keys) document.removeEventListener("keydown", page.keys);
  page.keys = (event) => exploreKey(event, find);
  document.addEventListener("keydown", page.keys);
  const asked = new URLSearchParams(location.search), action = { do: "open" };
  for (const name of ["prompt", "reply", "tokens", "top_p", "alpha", "gamma"]) {
    if (asked.has(name)) action[name] = asked.get(name);
  }
  if (!asked.has("prompt")) action.first = true;
  page.theme = asked.get("theme");
  if (page.theme === "dark" || page.theme === "light") root.dataset.theme = page.theme;
  setTimeout(() => exploreSend(action), 0);
}
function exploreKey(event, find) {
  const typing = event.target.closest("input, textarea, select");
  if (event.altKey || event.ctrlKey || event.metaKey || (typing && typing.type !== "range")) return;
  const board = document.querySelector("#x-board");
  const press = (what) => {
    const button = board.querySelector(what);
    if (button) { event.preventDefault(); button.click(); }
  };
  const key = event.key, page = window.explore, known = "123456789uncBackspace ".includes(key);
  if (page.doing && page.doing !== "outlook" && known && !event.target.closest("button, a, summary, [role=button]")) {
    event.preventDefault();
    if (page.waiting.length < 16) page.waiting.push(() => exploreKey(event, find));
    return;
  }
  if (key >= "1" && key <= "9") press(`.cand[data-focus="cand${key - 1}"]`);
  else if (key === "u" || key === "Backspace") press('[data-do="undo"]');
  else if (key === "n") press('[data-do="step"]');
  else if (key === "c") press('[data-do="compare"]');
  else if (key === "/") { event.preventDefault(); find("prompt").focus(); }
  else if (key === " " && !event.target.closest("button, a, summary, [role=button]")) press('.players .go');
  else if ((key === "Enter" || key === " ") && event.target.closest("[role=button]")) {
    event.preventDefault();
    exploreClick(event.target.closest("[role=button]"), board);
  }
}
function exploreClick(target, element) {
  const action = { ...target.dataset }, chosen = (id) => element.querySelector("#x-" + id);
  delete action.focus;
  if (["step", "play", "end"].includes(action.do)) action.player = chosen("player").value;
  if (action.do === "learn") action.agent = chosen("agent").value;
  exploreSend(action);
}
function exploreBoard(element, send, watch) {
  const page = window.explore;
  if (!page.send) page.send = send;
  element.addEventListener("click", (event) => {
    const target = event.target.closest("[data-do]");
    if (target && element.contains(target)) exploreClick(target, element);
  });
  element.addEventListener("submit", (event) => {
    event.preventDefault();
    exploreSend({ do: "student", name: element.querySelector("#x-student").value });
  });
  element.addEventListener("focusin", (event) => { page.focus = event.target.dataset ? event.target.dataset.focus : null; });
  watch("value", () => exploreDrawn(element));
}
function exploreDrawn(element) {
  const page = window.explore, board = element.querySelector(".board");
  page.doing = null;
  if (!board) return;
  const known = board.dataset, panel = document.querySelector("#x-panel");
  if (known.url && known.url !== location.search) history.replaceState(null, "", location.pathname + known.url);
  const prompt = panel.querySelector("#x-prompt");
  if (known.prompt && known.prompt !== page.prompt) { page.prompt = known.prompt; prompt.value = known.prompt; }
  for (const slider of panel.querySelectorAll("input[type=range]")) {
    const value = known[slider.name.replace("_p", "P")];
    if (value && !page.dragging) { slider.value = value; slider.nextElementSibling.value = Number(value).toFixed(2); }
  }
  const lost = document.activeElement === document.body || document.activeElement === null;
  if (page.focus && lost) {
    const again = element.querySelector(`[data-focus="${page.focus}"]`) || element.querySelector('[data-do="undo"]');
    if (again) again.focus({ preventScroll: true });
  }
  const tree = element.querySelector(".tree"), here = element.querySelector(".dot.here circle");
  if (tree && here) tree.parentElement.scrollLeft = here.cx.baseVal.value - tree.parentElement.clientWidth / 2;
  clearTimeout(page.timer);
  page.drawn = (page.drawn || 0) + 1;
  while (page.waiting.length && !page.doing) page.waiting.shift()();
  if (known.then && !page.doing) page.timer = setTimeout(() => exploreSend({ do: known.then }), Number(known.after));
}
