"""The look and the behaviour of the report's page: its style sheet and its script."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --raised: #f6f6f4; --ink: #1c1c1a; --quiet: #5f5f5a; --rule: #dcdcd6; --grid: #e9e9e4;
  --accent: #3f1e9c; --heat: #6fa8dc; --shadow: rgb(0 0 0 / 0.25);
}
@media screen and (prefers-color-scheme: dark) {
  :root:not(.printing) {
    --paper: #161615; --raised: #1f1f1d; --ink: #ecece6; --quiet: #a3a39b; --rule: #383834; --grid: #2b2b28;
    --accent: #f0a35e; --heat: #2f6ea8; --shadow: rgb(255 255 255 / 0.3);
  }
}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
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
.legend > span { color: var(--quiet); margin-right: 0.35rem; }
.legend button, .zoom, .pager button {
  font: inherit; color: inherit; background: none; border: 1px solid var(--rule); border-radius: 99px;
  padding: 0.2rem 0.75rem 0.2rem 0.6rem; min-height: 2rem; cursor: pointer; display: inline-flex; gap: 0.45rem;
  align-items: center;
}
.legend svg { width: 30px; height: 12px; flex: none; overflow: visible; }
.legend .all { margin-left: auto; padding-left: 0.75rem; }
.legend .key { display: inline-flex; gap: 0.45rem; align-items: center; margin-right: 0.75rem; color: inherit; }
.legend .key i { width: 1.35rem; height: 0; border-top: 3px solid currentcolor; }
.legend .key[data-line] i { border-top: 2px dashed var(--ink); }
.legend .key[data-line="dot"] i { border-top-style: dotted; }
.legend button[data-level][aria-pressed="false"] { opacity: 0.4; text-decoration: line-through; }
button:focus-visible, a:focus-visible, summary:focus-visible, .scroll:focus-visible, input:focus-visible {
  outline: 2px solid var(--accent); outline-offset: 2px; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); gap: 1.5rem; }
.beside { display: grid; grid-template-columns: minmax(0, 1.15fr) minmax(0, 1fr); gap: 2rem; align-items: start; }
@media (max-width: 60rem) { .beside { grid-template-columns: minmax(0, 1fr); } }
figure { margin: 0; min-width: 0; }
.head { display: flex; justify-content: space-between; align-items: end; gap: 1rem; min-height: 2rem; }
.zoom { font-size: 0.8125rem; padding-inline: 0.7rem; min-height: 1.75rem; white-space: nowrap; }
.chart { height: 25rem; }
figure.single .chart { max-width: 52rem; } figure.single .head { max-width: 52rem; }
figcaption { margin-top: 0.5rem; }
.scroll { overflow-x: auto; margin: 1rem 0;
  /* A shadow at an edge beyond which there is more; it scrolls away with the end of the content. */
  background: linear-gradient(to right, var(--paper) 30%, transparent) left / 2.5rem 100% no-repeat local,
    linear-gradient(to left, var(--paper) 30%, transparent) right / 2.5rem 100% no-repeat local,
    linear-gradient(to right, var(--shadow), transparent) left / 0.9rem 100% no-repeat scroll,
    linear-gradient(to left, var(--shadow), transparent) right / 0.9rem 100% no-repeat scroll; }
table { border-collapse: collapse; width: 100%; font-size: 0.9rem; }
th, td { text-align: left; padding: 0.45rem 0.6rem; white-space: nowrap; vertical-align: baseline; }
th:first-child, td:first-child { padding-left: 0; }
th.number, td.number { text-align: right; }
thead th { border-bottom: 1px solid var(--ink); font-weight: 500; font-size: 0.8125rem; vertical-align: bottom;
           white-space: normal; }
tbody td { border-bottom: 1px solid var(--rule); }
tbody tr.best td { font-weight: 650; }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
            text-align: inherit; }
th button::after { content: "\\2195"; opacity: 0.35; padding-left: 0.25em; }
th[aria-sort="ascending"] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort="descending"] button::after { content: "\\2193"; opacity: 1; }
.reason { display: block; white-space: normal; min-width: 12rem; font-size: 0.8125rem; font-weight: 400; }
.heat { font-size: 0.8125rem; margin-top: 0.5rem; width: auto; min-width: min(100%, 20rem); }
.heat th { font-weight: 500; white-space: normal; }
.heat th, .heat td { padding: 0.35rem 0.2rem; text-align: center; border: 0; }
.heat tbody th { text-align: right; padding-left: 0; }
.heat td { border: 2px solid var(--paper); min-width: 3.2rem; height: 2.5rem; line-height: 1.25;
  background: color-mix(in srgb, var(--heat) calc(var(--share) * 100%), var(--raised));
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.heat td.partial { background: none; box-shadow: inset 0 0 0 1px var(--rule); color: var(--quiet); }
.heat td.lost, .heat td.unknown { background: none; color: var(--quiet); }
.heat td.best { font-weight: 700; box-shadow: inset 0 0 0 2px var(--ink); }
.heat small { display: block; font-size: 0.6875rem; }
.pager { display: flex; flex-wrap: wrap; gap: 0.5rem 1rem; align-items: center; font-size: 0.875rem;
         margin-top: 0.75rem; }
.pager input { font: inherit; color: inherit; background: var(--paper); border: 1px solid var(--rule);
               border-radius: 6px; padding: 0.3rem 0.6rem; min-width: min(100%, 16rem); }
.pager button:disabled { opacity: 0.4; cursor: default; }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: 0; margin: 1rem 0; max-width: 56rem; }
dt, dd { margin: 0; padding: 0.45rem 0; border-bottom: 1px solid var(--rule); }
dt { padding-right: 2rem; } dd { overflow-wrap: anywhere; }
code, pre { font-family: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "Liberation Mono", monospace;
            font-size: 0.875em; }
pre { background: var(--raised); border: 1px solid var(--rule); border-radius: 6px; padding: 0.85rem 1rem;
      margin: 0.75rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: 1rem 0; } summary { cursor: pointer; }
@media screen and (max-width: 40rem) {
  main { padding: 1.5rem 1rem 3rem; }
  .chart { height: 19.5rem; } .legend .all { margin-left: 0; }
  .answer p:first-child { font-size: 1.075rem; }
  dl { grid-template-columns: 1fr; } dt { border: 0; padding-bottom: 0; font-size: 0.875rem; } dd { padding-top: 0; }
  /* A row of a table becomes a card, in which each cell says what it is: nothing is off the screen. */
  table.cards, .cards tbody { display: block; min-width: 0; width: 100%; }
  .cards thead { display: block; }
  .cards thead tr, .cards tbody tr { display: flex; flex-wrap: wrap; gap: 0.1rem 1rem; padding: 0.5rem 0; }
  .cards thead tr { gap: 0.4rem 1rem; border-bottom: 1px solid var(--ink); }
  .cards thead th { border: 0; padding: 0; }
  .answer .cards thead { display: none; }
  .cards tbody tr { border-bottom: 1px solid var(--rule); }
  .cards td { border: 0; padding: 0; text-align: left !important; }
  .cards td::before { color: var(--quiet); font-weight: 400; }
  .cards .reason { display: inline; } .cards .reason::before { content: ": "; }
}
@page { margin: 14mm; }
@media print {
  :root { color-scheme: light; }
  body { font-size: 10.5pt; }
  main { max-width: none; padding: 0; }
  h2 { margin-top: 1.75rem; } h2, h2 + .note, h3, .head, .legend, summary { break-after: avoid; }
  figure, .answer, .warning, tr, dt, dd, pre, p { break-inside: avoid; }
  p { orphans: 3; widows: 3; }
  .panels, .beside { display: block; } .panels figure, .beside > * { margin-bottom: 1.25rem; }
  .chart, figure.single .chart { height: 300px; width: 660px; max-width: none; }
  .screen, .zoom, .all, .pager, .reloads, .legend button[aria-pressed="false"] { display: none !important; }
  .legend button { border: 0; min-height: 0; } th button::after { content: none; }
  .scroll { overflow: visible; background: none; }
  table { font-size: 8.5pt; } th, td { padding: 0.25rem 0.35rem; } td:not(.number) { white-space: normal; }
  .reason { min-width: 0; font-size: 7.5pt; line-height: 1.3; }
  pre { border: 0; padding: 0; } dl { max-width: none; font-size: 9pt; } dt, dd { padding: 0.15rem 0; }
  details dl { grid-template-columns: max-content 1fr max-content 1fr; font-size: 8pt; }
  details dt { padding-right: 0.75rem; } details dd { padding-right: 1rem; }
}
"""

SCRIPT = """
const report = JSON.parse(document.getElementById("report").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)"), phone = matchMedia("(max-width: 40rem)");
const charts = [...document.querySelectorAll(".chart")];
const PRINTED_WIDTH = 660, PRINTED_HEIGHT = 300;  // pixels; A4 and Letter have room for it
const MARGIN = {l: 60, r: 12, t: 8, b: 50}, END_LABEL = 11, CHARACTER = 6.3;
// What a reader has chosen is kept over a reload, where the browser keeps anything for the page.
const place = "report " + location.pathname;
const kept = (() => {
  try { return JSON.parse(sessionStorage.getItem(place)) ?? {}; } catch { return {}; }
})();
function keep(changes) {
  Object.assign(kept, changes);
  try { sessionStorage.setItem(place, JSON.stringify(kept)); } catch { /* a page in a sandbox has no storage */ }
}
const hidden = new Set(kept.hidden), zoomed = new Set(kept.zoomed);
let everything = kept.everything ?? false, printing = false;

function painter() {
  const style = getComputedStyle(document.documentElement);
  const color = name => style.getPropertyValue(name).trim();
  return {color, level: number => color(`--level-${number}`), shade: number => color(`--shade-${number}`)};
}

function visible(meta, summarised) {
  if (meta.band !== undefined) return !everything;
  return !hidden.has(meta.level) && (!summarised || Boolean(meta.all) === everything);
}

function painted(trace, paint, summarised) {
  const meta = trace.meta, shown = visible(meta, summarised);
  if (meta.band !== undefined)
    return {...trace, visible: shown, line: {...trace.line, color: paint.color("--quiet")},
            fillcolor: paint.color("--quiet") + ["00", "20", "30"][meta.band]};
  if (meta.quietLine) return {...trace, line: {...trace.line, color: paint.color("--quiet")}};
  if (meta.levels) {
    const colors = meta.levels.map(paint.level);
    return {...trace, error_y: {...trace.error_y, color: paint.color("--quiet")},
            textfont: {...trace.textfont, color: paint.color("--quiet")}, opacity: meta.quiet ? 0.5 : 1,
            marker: {...trace.marker, color: colors, line: {width: 1.4, color: colors}}};
  }
  // A text for each point of a trace of many trials would be most of the page.
  if (meta.all && !trace.text)
    trace.text = meta.trials.flatMap(([label, points]) => [...Array(points).fill(label), ""]);
  const own = meta.reference ? paint.color("--ink")
    : meta.shade !== undefined ? paint.shade(meta.shade) : paint.level(meta.level);
  return {...trace, visible: shown, line: {...trace.line, color: own},
          marker: {...trace.marker, color: own, line: {width: 1.6, color: own}}};
}

// The labels at the ends of curves: in a column at the right, at the height of the end where there is room for it.
function endLabels(figure, size, paint, yRange) {
  const ends = (figure.layout.meta?.ends ?? []).filter(end => !hidden.has(end.level));
  const column = Math.max(0, ...ends.map(end => end.text.length)) * CHARACTER + 22;
  const height = size.height - MARGIN.t - MARGIN.b, width = size.width - MARGIN.l - column;
  if (!ends.length || phone.matches && !printing) return {annotations: [], column: MARGIN.r};
  const [left, right] = figure.layout.xaxis.range, [bottom, top] = yRange;
  const labels = ends.map(end => ({
    ...end, px: (end.x - left) / (right - left) * width, py: (top - end.y) / (top - bottom) * height,
  })).filter(end => end.py <= height + 1).sort((a, b) => a.py - b.py);
  const step = Math.min(END_LABEL + 3, height / Math.max(1, labels.length));
  let last = -Infinity;
  for (const label of labels) last = label.at = Math.max(label.py, last + step);
  let next = height + step / 2;
  for (const label of labels.reverse()) next = label.at = Math.min(label.at, next - step);
  const annotations = labels.map(label => ({
    x: label.x, y: Math.min(label.y, top), text: label.text, showarrow: true, arrowhead: 0, arrowwidth: 1,
    arrowcolor: paint.color("--rule"), standoff: 6, axref: "pixel", ayref: "pixel",
    ax: width - label.px + 10, ay: label.at - label.py, xanchor: "left", yanchor: "middle",
    font: {size: END_LABEL, color: paint.level(label.level)}, captureevents: false,
  }));
  return {annotations, column};
}

function themed(id, element) {
  const figure = report.figures[id], paint = painter(), {color} = paint;
  const size = printing ? {width: PRINTED_WIDTH, height: PRINTED_HEIGHT}
    : {width: element.clientWidth, height: element.clientHeight};
  const axis = {
    color: color("--quiet"), gridcolor: color("--grid"), linecolor: color("--rule"), zeroline: false,
    ticks: "", automargin: true, fixedrange: phone.matches,
  };
  const top = zoomed.has(id) && figure.layout.meta?.top;
  const yaxis = {...axis, ...figure.layout.yaxis, ...(top ? {range: top} : {})};
  const {annotations, column} = endLabels(figure, size, paint, yaxis.range);
  const summarised = figure.data.some(trace => trace.meta.all);
  return {data: figure.data.map(trace => painted(trace, paint, summarised)), layout: {
    ...figure.layout, xaxis: {...axis, ...figure.layout.xaxis}, yaxis, annotations,
    ...(printing ? {...size, autosize: false} : {autosize: true}),
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    font: {family: getComputedStyle(document.body).fontFamily, size: 12.5, color: color("--ink")},
    margin: {...MARGIN, r: column}, hovermode: "closest",
    hoverlabel: {bgcolor: color("--raised"), bordercolor: color("--rule"), font: {color: color("--ink")},
                 align: "left"},
  }};
}

function draw(element) {
  const {data, layout} = themed(element.id, element);
  element.drawn = true;
  Plotly.react(element, data, layout, {responsive: !printing, displayModeBar: false});
}
const drawAll = () => charts.forEach(draw);
const drawLevels = () => charts.filter(element => element.id.startsWith("time-")).forEach(draw);

for (const button of document.querySelectorAll("[data-level]")) {
  const level = Number(button.dataset.level);
  const show = () => button.setAttribute("aria-pressed", String(!hidden.has(level)));
  button.addEventListener("click", () => {
    if (!hidden.delete(level)) hidden.add(level);
    keep({hidden: [...hidden]});
    show();
    drawLevels();
  });
  show();
}

for (const button of document.querySelectorAll(".zoom")) {
  const id = button.dataset.chart;
  const show = () => {
    button.setAttribute("aria-pressed", String(zoomed.has(id)));
    button.textContent = zoomed.has(id) ? "Show everything" : "Zoom in on the top";
  };
  button.addEventListener("click", () => {
    if (!zoomed.delete(id)) zoomed.add(id);
    keep({zoomed: [...zoomed]});
    show();
    draw(document.getElementById(id));
  });
  show();
}

const all = document.querySelector(".all");
function showAll() {
  all.setAttribute("aria-pressed", String(everything));
  all.textContent = everything ? all.dataset.fewer : all.dataset.more;
}
all?.addEventListener("click", () => {
  everything = !everything;
  keep({everything});
  showAll();
  drawLevels();
});
if (all) showAll();

// The table of trials: sorted by a heading, filtered by words, a page at a time.
const headers = [...document.querySelectorAll("#trials thead th")], body = document.querySelector("#trials tbody");
const pager = document.querySelector(".pager"), filter = pager?.querySelector("input");
let rows = [...body.rows], page = kept.page ?? 0;
const PAGE = 50, PRINTED_ROWS = 200;
if (filter) filter.value = kept.filter ?? "";
function showRows() {
  if (!pager) return;
  const words = filter.value.toLowerCase().split(/\\s+/).filter(Boolean);
  const found = rows.filter(row => {
    row.words ??= [...row.cells].map(cell => cell.textContent).join(" ").toLowerCase();
    return words.every(word => row.words.includes(word));
  });
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  page = Math.min(page, pages - 1);
  const shown = printing && found.length <= PRINTED_ROWS ? found : found.slice(page * PAGE, (page + 1) * PAGE);
  for (const row of rows) row.hidden = true;
  for (const row of shown) row.hidden = false;
  const [back, on] = pager.querySelectorAll("button"), number = n => n.toLocaleString("en");
  back.disabled = page === 0;
  on.disabled = page === pages - 1;
  document.querySelector(".rows").textContent = !found.length ? "No trial has all of these words."
    : `Trials ${number(page * PAGE + 1)} to ${number(page * PAGE + shown.length)} of ${number(found.length)}`;
}
function turn(to) {
  page = to;
  keep({page, filter: filter?.value});
  showRows();
}
if (pager) {
  const [back, on] = pager.querySelectorAll("button");
  back.addEventListener("click", () => turn(page - 1));
  on.addEventListener("click", () => turn(page + 1));
  filter.addEventListener("input", () => turn(0));
}
function sortTrials(column, up) {
  for (const header of headers) header.removeAttribute("aria-sort");
  headers[column].setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.children[column].dataset.sort;
  const compare = (a, b) => {
    const [x, y] = [key(a), key(b)];
    if (x === "" || y === "") return (x === "") - (y === "");  // what is missing stays last
    return (up ? 1 : -1) * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
  };
  rows.sort(compare);
  body.append(...rows);
}
for (const [column, header] of headers.entries())
  header.querySelector("button").addEventListener("click", () => {
    const now = header.getAttribute("aria-sort");
    const up = now ? now !== "ascending" : header.dataset.first !== "descending";
    keep({sort: [column, up]});
    sortTrials(column, up);
    turn(0);
  });
if (kept.sort?.[0] < headers.length) sortTrials(...kept.sort);
showRows();

// The report of a running study is written again and again; the older it is the more seldom it is looked for, and no
// longer than a day: the study may be dead, or this a copy of its report.
function reload() {
  if (document.hidden) document.addEventListener("visibilitychange", () => location.reload(), {once: true});
  else location.reload();
}
const age = Date.now() / 1000 - report.written;
if (report.written && age < 86400) setTimeout(reload, 1000 * Math.min(600, Math.max(20, age / 5)));
else document.querySelector(".reloads")?.remove();

// On paper: the light theme, charts as wide as the page, everything opened.
const folded = [];
function print(on) {
  if (printing === on) return;
  printing = on;
  document.documentElement.classList.toggle("printing", on);
  if (on) folded.push(...document.querySelectorAll("details:not([open])"));
  for (const part of folded) part.open = on;
  if (!on) folded.length = 0;
  showRows();
  drawAll();
}
addEventListener("beforeprint", () => print(true));
addEventListener("afterprint", () => print(false));

dark.addEventListener("change", drawAll);
phone.addEventListener("change", drawAll);
let resized;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => { if (!printing) drawAll(); }, 200);
});
// One by one, so that the page can be read and used before the last is drawn.
(function drawNext() {
  const element = charts.find(chart => !chart.drawn);
  if (!element) return;
  draw(element);
  setTimeout(drawNext);
})();
"""
