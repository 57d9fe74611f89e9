// What the curves of trials are drawn against and which metric they show, by menus: what with_axes in
// dashboards/figures/time_axes.py does for a notebook. All panels have the same ranges.
const menus = document.querySelector(".axes");
const chosen = {x: "time", y: "validation_top1", logX: false, logY: false, ...kept.axes};
const round = value => Number(value.toPrecision(5));

function hasMenus(figure) {
  return figure.layout.meta?.x !== undefined;
}

function isAsWritten() {
  return chosen.x === "time" && chosen.y === "validation_top1" && !chosen.logX && !chosen.logY;
}

function chosenAxes(figure) {
  const {x, y} = figure.layout.meta;
  return [x.find(axis => axis.name === chosen.x) ?? x[0], y.find(axis => axis.name === chosen.y) ?? y[0]];
}

// The traces with what was chosen. Those that lack it are left out, and so is the spread of many trials, which is known
// for the accuracy against training time alone.
function rearranged(figure) {
  const [across, up] = chosenAxes(figure);
  const isAccuracy = up === figure.layout.meta.y[0];
  return figure.data.flatMap(trace => {
    const {series, hover} = trace.meta;
    if (!series && (across.of !== "time" || !isAccuracy)) return [];
    const heights = isAccuracy ? trace.y : series[up.name];
    const places =
      across.of === "time"
        ? trace.x
        : across.of === "epochs"
          ? trace.customdata.map(([epoch]) => epoch)
          : series[across.of];
    if (!heights || !places) return [];
    const words = series && {hovertemplate: hover.replace("{metric}", () => `${markedUp(up.title)} %{y:${up.format}}`)};
    const x = places.map(value => (value === null ? null : round(value * across.factor)));
    return [{...trace, x, y: heights, ...words}];
  });
}

function extent(traces, name, isLog) {
  let [low, high] = [Infinity, -Infinity];
  for (const trace of traces)
    for (const value of trace[name])
      if (Number.isFinite(value) && (value > 0 || !isLog)) {
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
  return low <= high ? [low, high] : [1, 10];
}

// Plotly's own labels of a logarithmic axis are the first digit alone.
function logarithmic([low, high]) {
  const ticks = [];
  const first = Math.floor(Math.log10(low / 1.2));
  const last = Math.ceil(Math.log10(high * 1.6));
  for (let power = first; power <= last; power += 1)
    for (const digit of last - first < 4 ? [1, 2, 5] : [1]) ticks.push(Number(`${digit}e${power}`));
  const shown = ticks.filter(tick => low / 1.2 <= tick && tick <= high * 1.6);
  return {
    type: "log",
    range: [Math.log10(low / 1.2), Math.log10(high * 1.6)],
    tickvals: shown,
    ticktext: shown.map(tick => tick.toLocaleString("en", {maximumFractionDigits: 10})),
  };
}

function movedEnds(ends, traces) {
  const longest = new Map();
  for (const trace of traces) {
    const {level, series} = trace.meta;
    const epoch = series && trace.customdata.at(-1)[0];
    if (series && epoch > (longest.get(level)?.epoch ?? -1)) longest.set(level, {trace, epoch});
  }
  return ends.flatMap(end => {
    const found = longest.get(end.level)?.trace;
    const [x, y] = [found?.x.at(-1), found?.y.at(-1)];
    const isShown = Number.isFinite(x) && Number.isFinite(y) && (x > 0 || !chosen.logX) && (y > 0 || !chosen.logY);
    if (!isShown) return [];
    return [{...end, x: chosen.logX ? Math.log10(x) : x, y: chosen.logY ? Math.log10(y) : y}];
  });
}

let drawnFor;
let extents;
arrangements.push(figure => {
  if (!hasMenus(figure) || isAsWritten()) return figure;
  const [across, up] = chosenAxes(figure);
  if (drawnFor !== JSON.stringify(chosen)) {
    drawnFor = JSON.stringify(chosen);
    const every = Object.values(report.figures).filter(hasMenus).flatMap(rearranged);
    extents = [extent(every, "x", chosen.logX), extent(every, "y", chosen.logY)];
  }
  const data = rearranged(figure);
  const [[, right], [bottom, top]] = extents;
  const margin = 0.06 * (top - bottom) || 0.5;
  const isAccuracy = up === figure.layout.meta.y[0];
  // A share has no room beyond 0 and 1; a line along 100% is drawn whole.
  const [least, most] = up.format.endsWith("%") ? [Math.min(0, bottom), Math.max(1.005, top)] : [-Infinity, Infinity];
  const range = [Math.max(least, bottom - margin), Math.min(most, top + margin)];
  const linear = isAccuracy ? {} : {range};
  return {
    data,
    layout: {
      ...figure.layout,
      meta: {...figure.layout.meta, top: null, ends: movedEnds(figure.layout.meta.ends, data)},
      xaxis: {
        ...figure.layout.xaxis,
        title: {text: markedUp(across.title)},
        ...(chosen.logX ? logarithmic(extents[0]) : {range: [0, 1.04 * right]}),
      },
      yaxis: {
        ...figure.layout.yaxis,
        title: {text: markedUp(up.title)},
        tickformat: isAccuracy ? figure.layout.yaxis.tickformat : up.format,
        ...(chosen.logY ? {...logarithmic(extents[1]), ticktext: undefined} : linear),
      },
    },
  };
});

// The close-up is one of the accuracy against training time.
function showZoom() {
  for (const button of document.querySelectorAll(".zoom"))
    if (hasMenus(report.figures[button.dataset.chart])) button.disabled = !isAsWritten();
}

for (const control of menus?.querySelectorAll("select, input") ?? []) {
  const isBox = control.type === "checkbox";
  const set = () => {
    control[isBox ? "checked" : "value"] = chosen[control.name];
  };
  set();
  // A metric that this version of the report does not have any more.
  if (!isBox && control.selectedIndex < 0) {
    chosen[control.name] = control.options[0].value;
    set();
  }
  control.addEventListener("change", () => {
    chosen[control.name] = isBox ? control.checked : control.value;
    keep({axes: chosen});
    showZoom();
    charts.filter(element => hasMenus(report.figures[element.id])).forEach(draw);
  });
}
showZoom();
