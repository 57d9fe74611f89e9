// What a study's report does besides its charts (charts.js): the table of trials, and reloading while the study runs.

// The table of trials: sorted by a heading, filtered by words, a page at a time.
const PAGE = 50;
const PRINTED_ROWS = 200;
const headers = [...document.querySelectorAll("#trials thead th")];
const body = document.querySelector("#trials tbody");
const rows = [...body.rows];
const pager = document.querySelector(".pager");
const filter = pager?.querySelector("input");
let page = kept.page ?? 0;
if (filter) filter.value = kept.filter ?? "";
function showRows() {
  if (!pager) return;
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  const found = rows.filter(row => {
    row.words ??= [...row.cells]
      .map(cell => cell.textContent)
      .join(" ")
      .toLowerCase();
    return words.every(word => row.words.includes(word));
  });
  const pages = Math.max(1, Math.ceil(found.length / PAGE));
  page = Math.min(page, pages - 1);
  const shown = printing && found.length <= PRINTED_ROWS ? found : found.slice(page * PAGE, (page + 1) * PAGE);
  for (const row of rows) row.hidden = true;
  for (const row of shown) row.hidden = false;
  const [back, on] = pager.querySelectorAll("button");
  const number = n => n.toLocaleString("en");
  back.disabled = page === 0;
  on.disabled = page === pages - 1;
  document.querySelector(".rows").textContent = !found.length
    ? "No trial matches."
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
    // Missing values stay last in both directions.
    if (x === "" || y === "") return (x === "") - (y === "");
    const words = Number.isNaN(Number(x)) || Number.isNaN(Number(y));
    return (up ? 1 : -1) * (words ? x.localeCompare(y) : x - y);
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

// The report of a running study is rewritten about once a minute. The older this one is, the less often the page
// reloads, and after a day never: the study may be dead, or this file a copy of its report.
function reload() {
  if (document.hidden) document.addEventListener("visibilitychange", () => location.reload(), {once: true});
  else location.reload();
}
const age = Date.now() / 1000 - report.written;
if (report.written && age < 86400) setTimeout(reload, 1000 * Math.min(600, Math.max(20, age / 5)));
else document.querySelector(".reloads")?.remove();

// On paper folded parts are opened, and a table of at most PRINTED_ROWS rows is shown whole.
const folded = [];
addEventListener("beforeprint", () => {
  folded.push(...document.querySelectorAll("details:not([open])"));
  for (const part of folded) part.open = true;
  showRows();
});
addEventListener("afterprint", () => {
  for (const part of folded) part.open = false;
  folded.length = 0;
  showRows();
});
