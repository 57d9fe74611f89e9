// The charts of a page: Plotly's figures, coloured for the reader's theme, with a legend that hides levels and buttons
// that zoom. dashboards/figures/painting.py has the names of colours and what a trace's `meta` says.
const report = JSON.parse(document.getElementById("report").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const phone = matchMedia("(max-width: 40rem)");
const charts = [...document.querySelectorAll(".chart")];
// All sizes are in pixels. A4 and Letter have room for a printed chart.
const PRINTED_WIDTH = 660;
const PRINTED_HEIGHT = 300;
const MARGIN = {l: 60, r: 12, t: 8, b: 50};
const END_LABEL = 11;
const CHARACTER = 6.3;

// The reader's choices survive a reload, where the browser stores anything for the page.
const place = `report ${location.pathname}`;
const kept = (() => {
  try {
    return JSON.parse(sessionStorage.getItem(place)) ?? {};
  } catch {
    return {};
  }
})();
function keep(changes) {
  Object.assign(kept, changes);
  try {
    sessionStorage.setItem(place, JSON.stringify(kept));
  } catch {
    // A page in a sandbox has no storage.
  }
}
const hidden = new Set(kept.hidden);
const zoomed = new Set(kept.zoomed);
let everything = kept.everything ?? false;
let printing = false;
// A page with menus (axes.js) gives a figure other axes.
const arrangements = [];

// The colour of a name, `@accent` or `@accent/22` with an opacity, in the reader's theme.
function painter() {
  const style = getComputedStyle(document.documentElement);
  return name => {
    const [own, opacity = ""] = name.slice(1).split("/");
    const found = style.getPropertyValue(`--${own}`).trim();
    return found ? found + opacity : name;
  };
}

// A plain text so that Plotly shows it as it is: dashboards/figures/plotly_texts.py.
const markedUp = text => text.replace(/[&<>{}$@]/g, sign => `&#${sign.charCodeAt(0)};`).replace(/\n/g, "<br>");

// A figure with colours in place of their names. Of arrays longer than a pair the first entry says what all are.
function colored(value, color) {
  if (typeof value === "string") return value.startsWith("@") ? color(value) : value;
  if (Array.isArray(value)) {
    const [first] = value;
    return value.length <= 2 || typeof first === "object" || (typeof first === "string" && first.startsWith("@"))
      ? value.map(inner => colored(inner, color))
      : value;
  }
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [key, key === "meta" ? inner : colored(inner, color)]),
  );
}

function visible(meta, summarised) {
  if (meta.band !== undefined) return !everything;
  return !hidden.has(meta.level) && (!summarised || Boolean(meta.all) === everything);
}

function shown(trace, color, summarised) {
  const meta = trace.meta;
  // A text for each point of a trace of many trials would be most of the page.
  if (meta.all && !trace.text)
    trace.text = meta.trials.flatMap(([label, points]) => [...Array(points).fill(markedUp(label)), ""]);
  const seen = meta.band !== undefined || meta.level !== undefined ? {visible: visible(meta, summarised)} : {};
  return {...colored(trace, color), ...seen};
}

// The labels at the ends of curves: in a column on the right, each level with its end unless another label is there.
function endLabels(figure, size, color, yRange) {
  const ends = (figure.layout.meta?.ends ?? []).filter(end => !hidden.has(end.level));
  const column = Math.max(0, ...ends.map(end => end.text.length)) * CHARACTER + 22;
  const height = size.height - MARGIN.t - MARGIN.b;
  const width = size.width - MARGIN.l - column;
  if (!ends.length || (phone.matches && !printing)) return {annotations: [], column: MARGIN.r};
  const [left, right] = figure.layout.xaxis.range;
  const [bottom, top] = yRange;
  const labels = ends
    .map(end => ({
      ...end,
      px: ((end.x - left) / (right - left)) * width,
      py: ((top - end.y) / (top - bottom)) * height,
    }))
    .filter(end => end.py <= height + 1)
    .sort((a, b) => a.py - b.py);
  const step = Math.min(END_LABEL + 3, height / Math.max(1, labels.length));
  let last = -Infinity;
  for (const label of labels) last = label.at = Math.max(label.py, last + step);
  let next = height + step / 2;
  for (const label of labels.reverse()) next = label.at = Math.min(label.at, next - step);
  const annotations = labels.map(label => ({
    x: label.x,
    y: Math.min(label.y, top),
    text: markedUp(label.text),
    showarrow: true,
    arrowhead: 0,
    arrowwidth: 1,
    arrowcolor: color("@rule"),
    standoff: 6,
    axref: "pixel",
    ayref: "pixel",
    ax: width - label.px + 10,
    ay: label.at - label.py,
    xanchor: "left",
    yanchor: "middle",
    font: {size: END_LABEL, color: color(`@level-${label.level}`)},
    captureevents: false,
  }));
  return {annotations, column};
}

function themed(id, element) {
  const figure = arrangements.reduce((so, arrange) => arrange(so), report.figures[id]);
  const color = painter();
  const size = printing
    ? {width: PRINTED_WIDTH, height: PRINTED_HEIGHT}
    : {width: element.clientWidth, height: element.clientHeight};
  const axis = {
    color: color("@quiet"),
    gridcolor: color("@grid"),
    linecolor: color("@rule"),
    zeroline: false,
    ticks: "",
    automargin: true,
    fixedrange: phone.matches,
  };
  const top = zoomed.has(id) && figure.layout.meta?.top;
  const yaxis = {...axis, ...figure.layout.yaxis, ...(top ? {range: top} : {})};
  const {annotations, column} = endLabels(figure, size, color, yaxis.range);
  const summarised = figure.data.some(trace => trace.meta.all);
  return {
    data: figure.data.map(trace => shown(trace, color, summarised)),
    layout: {
      hovermode: "closest",
      ...figure.layout,
      xaxis: {...axis, ...figure.layout.xaxis},
      yaxis,
      annotations,
      ...(printing ? {...size, autosize: false} : {autosize: true}),
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      showlegend: false,
      font: {family: getComputedStyle(document.body).fontFamily, size: 12.5, color: color("@ink")},
      margin: {...MARGIN, r: column},
      hoverlabel: {
        bgcolor: color("@raised"),
        bordercolor: color("@rule"),
        font: {color: color("@ink")},
        align: "left",
      },
    },
  };
}

function draw(element) {
  if (!globalThis.Plotly) return;
  const {data, layout} = themed(element.id, element);
  element.drawn = true;
  Plotly.react(element, data, layout, {responsive: !printing, displayModeBar: false});
}
const drawAll = () => charts.forEach(draw);
const hasLevels = element => report.figures[element.id].data.some(trace => trace.meta.level !== undefined);
const drawLevels = () => charts.filter(hasLevels).forEach(draw);

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

// On paper: the light theme, and charts as wide as the page.
function setPrinting(on) {
  if (printing === on) return;
  printing = on;
  document.documentElement.classList.toggle("printing", on);
  drawAll();
}
addEventListener("beforeprint", () => setPrinting(true));
addEventListener("afterprint", () => setPrinting(false));

dark.addEventListener("change", drawAll);
phone.addEventListener("change", drawAll);
let resized;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(() => {
    if (!printing) drawAll();
  }, 200);
});

// Plotly is compressed in the page, and the page can be read and used before it is unpacked.
async function loadPlotly() {
  if (!globalThis.DecompressionStream) {
    for (const chart of charts) chart.textContent = "This browser is older than 2023 and cannot draw the charts.";
    return;
  }
  const packed = document.getElementById("plotly");
  const bytes = Uint8Array.from(atob(packed.textContent), character => character.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  packed.replaceWith(script);
}

// One by one, so that the page can be read and used before the last is drawn.
function drawNext() {
  const element = charts.find(chart => !chart.drawn);
  if (!element || !globalThis.Plotly) return;
  draw(element);
  setTimeout(drawNext);
}

const plotlyLoaded = loadPlotly();
plotlyLoaded.then(drawNext);
