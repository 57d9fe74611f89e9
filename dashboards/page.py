"""The look and the behaviour of the report's page: its style sheet and its script."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --raised: #f6f6f4; --ink: #1c1c1a; --quiet: #5f5f5a; --rule: #dcdcd6; --grid: #e9e9e4;
  --accent: #3f1e9c;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #161615; --raised: #1f1f1d; --ink: #ecece6; --quiet: #a3a39b; --rule: #383834; --grid: #2b2b28;
    --accent: #f0a35e;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums;
}
main { max-width: 70rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: clamp(1.4rem, 1.1rem + 1.3vw, 1.9rem); line-height: 1.22; letter-spacing: -0.015em;
     font-weight: 650; margin: 0.35rem 0 1.25rem; max-width: 30em; text-wrap: balance; }
h2 { font-size: 1.15rem; font-weight: 650; letter-spacing: -0.005em; margin: 3.25rem 0 0.25rem; }
h3 { font-size: 0.875rem; font-weight: 600; margin: 0 0 0.25rem; }
p { margin: 0.5rem 0; max-width: 44em; }
.overline, .note, figcaption, dt, th, .reason { color: var(--quiet); }
.overline { font-size: 0.875rem; margin: 0; }
.note, figcaption { font-size: 0.875rem; line-height: 1.5; max-width: 50em; }
.answer { border-left: 3px solid var(--accent); padding: 0.15rem 0 0.15rem 1.1rem; margin: 1.5rem 0; }
.answer p:first-child { font-size: 1.2rem; line-height: 1.45; max-width: 40em; margin-top: 0; }
.answer table { width: auto; min-width: min(100%, 34rem); }
caption { text-align: left; font-size: 0.9rem; padding-bottom: 0.35rem; }
.warning { background: var(--raised); border: 1px solid var(--rule); border-radius: 6px; padding: 0.75rem 1rem;
           max-width: 50em; }
.legend { display: flex; flex-wrap: wrap; gap: 0.35rem; align-items: center; margin: 0.9rem 0 1rem;
          font-size: 0.875rem; }
.legend span { color: var(--quiet); margin-right: 0.35rem; }
.legend .zoom { margin-left: auto; padding-left: 0.75rem; }
.legend button {
  font: inherit; color: inherit; background: none; border: 1px solid var(--rule); border-radius: 99px;
  padding: 0.2rem 0.75rem 0.2rem 0.6rem; min-height: 2rem; cursor: pointer; display: inline-flex; gap: 0.45rem;
  align-items: center;
}
.legend button i { width: 1.35rem; height: 0; border-top: 3px solid currentcolor; }
.legend button[data-none] i { border-top-style: dotted; }
.legend .key { display: inline-flex; gap: 0.45rem; align-items: center; margin-right: 0.75rem; color: inherit; }
.legend .key i { width: 1.35rem; height: 0; border-top: 3px solid currentcolor; }
.legend .key[data-line] i { border-top: 2px dashed var(--ink); }
.legend .key[data-line="dot"] i { border-top-style: dotted; }
.legend button[data-level][aria-pressed="false"] { opacity: 0.4; text-decoration: line-through; }
button:focus-visible, a:focus-visible, summary:focus-visible, .scroll:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 2px; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; min-width: 0; }
.chart { height: 25rem; }
figure.single .chart { max-width: 52rem; }
figcaption { margin-top: 0.5rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { text-align: left; padding: 0.45rem 0.8rem; white-space: nowrap; vertical-align: baseline; }
th:first-child, td:first-child { padding-left: 0; }
th.number, td.number { text-align: right; }
thead th { border-bottom: 1px solid var(--ink); font-weight: 500; font-size: 0.8125rem; vertical-align: bottom; }
tbody td { border-bottom: 1px solid var(--rule); }
tbody tr.best td { font-weight: 650; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
th button::after { content: "\\2195"; opacity: 0.35; padding-left: 0.25em; }
th[aria-sort="ascending"] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort="descending"] button::after { content: "\\2193"; opacity: 1; }
.reason { display: block; white-space: normal; min-width: 12rem; font-size: 0.8125rem; font-weight: 400; }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: 0; margin: 1rem 0; max-width: 56rem; }
dt, dd { margin: 0; padding: 0.45rem 0; border-bottom: 1px solid var(--rule); }
dt { padding-right: 2rem; } dd { overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "Liberation Mono", monospace;
            font-size: 0.875em; }
pre { background: var(--raised); border: 1px solid var(--rule); border-radius: 6px; padding: 0.85rem 1rem;
      margin: 0.75rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: 1rem 0; } summary { cursor: pointer; }
@media (max-width: 40rem) {
  main { padding: 1.5rem 1rem 3rem; }
  .chart { height: 19.5rem; } .legend .zoom { margin-left: 0; padding-left: 0.6rem; }
  .answer p:first-child { font-size: 1.075rem; }
  th, td { padding-inline: 0.55rem; } thead th { white-space: normal; }
  dl { grid-template-columns: 1fr; } dt { border: 0; padding-bottom: 0; font-size: 0.875rem; } dd { padding-top: 0; }
  th:first-child, td:first-child { padding-left: 0; position: sticky; left: 0; background: var(--paper); }
}
@media print { .legend button { border: 0; } th button::after { content: none; } pre { border: 0; padding: 0; } }
"""

SCRIPT = """
const report = JSON.parse(document.getElementById("report").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const charts = [...document.querySelectorAll(".chart")];
// What a reader has chosen is kept over a reload, where the browser keeps anything for the page.
const place = "report " + location.pathname;
const kept = (() => {
  try { return JSON.parse(sessionStorage.getItem(place)) ?? {}; } catch { return {}; }
})();
function keep(changes) {
  Object.assign(kept, changes);
  try { sessionStorage.setItem(place, JSON.stringify(kept)); } catch { /* a page in a sandbox has no storage */ }
}

const hidden = new Set(kept.hidden);
let closeUp = kept.closeUp ?? false;

function themed(figure) {
  const style = getComputedStyle(document.documentElement);
  const color = name => style.getPropertyValue(name).trim();
  const theme = dark.matches ? "dark" : "light";
  const palette = report.palettes[theme], shades = report.shades[theme];
  const narrow = matchMedia("(max-width: 40rem)").matches;
  const axis = {
    color: color("--quiet"), gridcolor: color("--grid"), linecolor: color("--rule"), zeroline: false,
    ticks: "", automargin: true, fixedrange: narrow,
  };
  const data = figure.data.map(trace => {
    const meta = trace.meta;
    const own = palette[meta.level] ?? shades[meta.shade] ?? (meta.reference && color("--ink"));
    if (own)
      return {...trace, visible: !hidden.has(meta.level), line: {...trace.line, color: own},
              marker: {...trace.marker, color: own, line: {width: 1.6, color: own}}};
    const colors = meta.levels.map(level => palette[level]);
    return {...trace, line: {...trace.line, color: color("--quiet")},
            error_y: {...trace.error_y, color: color("--quiet")},
            marker: {...trace.marker, color: colors, line: {width: 1, color: color("--paper")}}};
  });
  const layout = {
    ...figure.layout,
    xaxis: {...axis, ...figure.layout.xaxis}, yaxis: {...axis, ...figure.layout.yaxis},
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    showlegend: false,
    font: {family: getComputedStyle(document.body).fontFamily, size: 12.5, color: color("--ink")},
    margin: {l: 56, r: 12, t: 8, b: 46}, hovermode: "closest",
    hoverlabel: {bgcolor: color("--raised"), bordercolor: color("--rule"), font: {color: color("--ink")},
                 align: "left"},
  };
  const top = figure.layout.meta?.top;
  if (closeUp && top) layout.yaxis = {...layout.yaxis, range: top};
  return {data, layout};
}

function draw() {
  for (const element of charts) {
    const {data, layout} = themed(report.figures[element.id]);
    Plotly.react(element, data, layout, {responsive: true, displayModeBar: false});
  }
  const theme = dark.matches ? "dark" : "light";
  for (const button of document.querySelectorAll("[data-level]"))
    button.querySelector("i").style.color = report.palettes[theme][button.dataset.level];
  for (const key of document.querySelectorAll("[data-shade]"))
    key.querySelector("i").style.color = report.shades[theme][key.dataset.shade];
}

for (const button of document.querySelectorAll("[data-level]")) {
  const level = Number(button.dataset.level);
  const show = () => button.setAttribute("aria-pressed", String(!hidden.has(level)));
  button.addEventListener("click", () => {
    if (!hidden.delete(level)) hidden.add(level);
    keep({hidden: [...hidden]});
    show();
    draw();
  });
  show();
}

const zoom = document.querySelector(".zoom");
function showZoom() {
  zoom.setAttribute("aria-pressed", String(closeUp));
  zoom.textContent = closeUp ? "Show everything" : "Zoom in on the top";
}
zoom?.addEventListener("click", () => {
  closeUp = !closeUp;
  keep({closeUp});
  showZoom();
  draw();
});
if (zoom) showZoom();

const headers = [...document.querySelectorAll("#trials thead th")];
function sortTrials(column, up) {
  const body = document.querySelector("#trials tbody");
  for (const header of headers) header.removeAttribute("aria-sort");
  headers[column].setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.children[column].dataset.sort;
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");  // what is missing stays last
    return (up ? 1 : -1) * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
  };
  body.append(...[...body.rows].sort(compare));
}
for (const [column, header] of headers.entries())
  header.querySelector("button").addEventListener("click", () => {
    const now = header.getAttribute("aria-sort");
    const up = now ? now !== "ascending" : header.dataset.first !== "descending";
    keep({sort: [column, up]});
    sortTrials(column, up);
  });
if (kept.sort?.[0] < headers.length) sortTrials(...kept.sort);

// The report of a running study is written again and again; the older it is the more seldom it is looked for, and no
// longer than a day: the study may be dead, or this a copy of its report.
function reload() {
  if (document.hidden) document.addEventListener("visibilitychange", () => location.reload(), {once: true});
  else location.reload();
}
const age = Date.now() / 1000 - report.written;
if (report.written && age < 86400) setTimeout(reload, 1000 * Math.min(600, Math.max(20, age / 5)));
else document.querySelector(".reloads")?.remove();

dark.addEventListener("change", draw);
draw();
"""
