// The two curves, drawn by plotly. Colours come from the page's own variables, so they follow light and dark.

import { number, significant } from "/static/format.js";

const KEPT = 0.9; // of the exponential mean, per step: the status payload's streaming_ce
const MOST_MARKS = 40;
const NAME_SHARE = 0.09; // of the width: what the name of a version takes
const CONFIG = { displayModeBar: false, responsive: true, doubleClick: false, scrollZoom: false };
const SUITE_COLOURS = ["--ember", "--cool", "--good", "--warn", "--quiet"];

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function layout(extra) {
  const axis = { gridcolor: colour("--line"), zeroline: false, linecolor: colour("--line"), fixedrange: true, automargin: true };
  const { xaxis = {}, yaxis = {}, ...rest } = extra;
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: getComputedStyle(document.body).fontFamily, size: 11.5, color: colour("--quiet") },
    margin: { l: 44, r: 10, t: 16, b: 34 },
    hovermode: "x unified",
    hoverlabel: { bgcolor: colour("--panel"), bordercolor: colour("--line"), font: { color: colour("--ink") } },
    dragmode: false,
    showlegend: false,
    xaxis: { ...axis, showgrid: false, tickformat: ",d", nticks: 7, ...xaxis },
    yaxis: { ...axis, nticks: 6, ...yaxis },
    ...rest,
  };
}

/** A dotted line where each version was made; the champion's is solid. Names stand where there is room for them. */
function versionMarks({ champion, versions }, from, to) {
  const within = (version) => version.step !== null && version.step >= from && version.step <= to;
  const shown = versions.filter(within).slice(0, MOST_MARKS).sort((a, b) => (b.name === champion) - (a.name === champion));
  const ink = (version) => colour(version.name === champion ? "--ember" : "--faint");
  const named = [];
  for (const version of shown) {
    if (named.every((other) => Math.abs(other.step - version.step) >= NAME_SHARE * (to - from))) named.push(version);
  }
  return {
    shapes: shown.map((version) => ({ type: "line", x0: version.step, x1: version.step, yref: "paper", y0: 0, y1: 1, layer: "below",
      line: { color: ink(version), width: 1, dash: version.name === champion ? "solid" : "dot" } })),
    annotations: named.map((version) => ({ x: version.step, y: 1, yref: "paper", yanchor: "bottom", showarrow: false,
      text: version.name, font: { size: 10, color: ink(version) } })),
  };
}

/** The exponential mean; a point that stands for many steps weighs as much as they would. */
function smooth(steps, values) {
  let mean = values[0];
  return values.map((value, i) => (mean += (1 - KEPT ** (i === 0 ? 1 : steps[i] - steps[i - 1])) * (value - mean)));
}

function draw(id, traces, extra, points) {
  const place = document.getElementById(id);
  if (window.Plotly === undefined) {
    place.textContent = "plotly.js did not load";
    return;
  }
  window.Plotly.react(place, traces, layout(extra), CONFIG).then(() => { place.dataset.points = String(points); });
}

export function drawLoss(points, width, versions) {
  const note = document.getElementById("loss-note");
  note.textContent = points.length === 0 ? "no step yet" : width > 1 ? `each point is ${number(width)} steps` : "";
  const steps = points.map((point) => point.step);
  const losses = points.map((point) => point.loss);
  const smoothed = smooth(steps, losses);
  const ember = colour("--ember");
  const text = points.map((point, index) => `${significant(smoothed[index])} smoothed · ${significant(point.loss)}`);
  const traces = [
    { x: steps, y: points.map((point) => point.loss_max), mode: "lines", line: { width: 0 }, hoverinfo: "skip" },
    { x: steps, y: points.map((point) => point.loss_min), mode: "lines", line: { width: 0 }, fill: "tonexty",
      fillcolor: colour("--ember-soft"), hoverinfo: "skip" },
    { x: steps, y: losses, mode: "lines", line: { color: ember, width: 1 }, opacity: 0.35, hoverinfo: "skip" },
    { x: steps, y: smoothed, mode: points.length === 1 ? "markers" : "lines", line: { color: ember, width: 2.2 }, text,
      hovertemplate: "%{text}<extra></extra>" },
  ];
  const marks = steps.length ? versionMarks(versions, steps[0], steps.at(-1)) : {};
  const shown = { ...marks, xaxis: { title: { text: "step", standoff: 6 } }, yaxis: { rangemode: "tozero" } };
  draw("loss-chart", traces, shown, points.length);
}

/** One line a suite with its 95 % intervals; the base model stands at step 0. */
export function drawExact(evaluations, versions) {
  const placed = evaluations.map((e) => ({ ...e, step: e.ref === "base" ? 0 : e.step })).filter((e) => e.step !== null);
  const names = [...new Set(placed.flatMap((e) => Object.keys(e.suites)))];
  const judged = placed.filter((e) => Object.values(e.suites).some((suite) => suite.exact !== null));
  const traces = names.slice(0, SUITE_COLOURS.length).flatMap((name, index) => suiteTraces(name, judged, SUITE_COLOURS[index], names.length));
  const steps = judged.map((e) => e.step);
  const marks = steps.length ? versionMarks(versions, Math.min(...steps), Math.max(...steps)) : {};
  const note = document.getElementById("exact-note");
  note.textContent = judged.length === 0 ? "not evaluated yet" : names.length === 1 ? `${names[0]}, with 95 % interval` : "with 95 % intervals";
  draw("exact-chart", traces, {
    ...marks,
    showlegend: names.length > 1,
    legend: { orientation: "h", y: -0.2, font: { size: 11 } },
    xaxis: { title: { text: "step", standoff: 6 } },
    yaxis: { rangemode: "tozero", ticksuffix: " %", range: [0, 102] },
  }, judged.length);
}

function suiteTraces(name, judged, variable, count) {
  const own = judged.filter((e) => e.suites[name] && e.suites[name].exact !== null).sort((a, b) => a.step - b.step);
  const suites = own.map((e) => e.suites[name]);
  const x = own.map((e) => e.step);
  const y = suites.map((suite) => 100 * suite.exact);
  const low = suites.map((suite) => 100 * (suite.exact_ci?.[0] ?? suite.exact));
  const high = suites.map((suite) => 100 * (suite.exact_ci?.[1] ?? suite.exact));
  const ink = colour(variable);
  const text = suites.map((suite, index) => `${count > 1 ? `${name}: ` : ""}${number(y[index], 1)} % `
    + `(${number(low[index])}–${number(high[index])}), ${number(suite.n)} items`);
  const line = { x, y, name, mode: "lines+markers", line: { color: ink, width: 2.2 }, marker: { size: 6.5, color: ink }, text,
    hovertemplate: "%{text}<extra></extra>",
    error_y: { type: "data", symmetric: false, array: high.map((v, i) => v - y[i]), arrayminus: low.map((v, i) => y[i] - v),
      thickness: 1, width: 0, color: ink, visible: count > 1 || own.length === 1 } };
  if (count > 1) return [line];
  const edge = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", showlegend: false };
  return [{ ...edge, y: high }, { ...edge, y: low, fill: "tonexty", fillcolor: colour("--ember-soft") }, line];
}
