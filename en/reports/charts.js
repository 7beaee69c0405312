"use strict";
// Draws each chart in the place of its figure by uPlot, with the values under the mouse in its legend.
const HATCH = 8, HEIGHTS = [220, 340]; // pixels between strokes, and of a chart
const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]; // steps between epochs or layers
const charts = [];

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const font = () => `${12 * devicePixelRatio}px system-ui`;
const digits = (value, significant = 4) => String(Number(value.toPrecision(significant)));

// The lines of a chart as uPlot's series: of each line its mean, the two ends of its spread, and its seeds.
function columns(chart) {
  const place = (u, value, i, at) => at == null ? "" : chart.names?.[at] ?? digits(chart.x[at]);
  const series = [{ label: chart.labels[0], value: place }];
  const data = [chart.x], bands = [];
  const add = (values, more) => data.push(values) && series.push({ spanGaps: !chart.names, ...more }) - 1;
  for (const line of chart.lines) {
    const look = { stroke: line.colour, dash: line.dash, width: line.width };
    const points = { size: chart.joined ? 6 : 9, fill: chart.joined ? undefined : line.colour };
    if (!chart.joined || chart.names || chart.x.length === 1) points.show = true;
    const own = add(line.values, { ...look, label: line.name, points, value: (u, v, i, at) => said(chart, line, at) });
    if (!chart.joined) series[own].paths = () => null;
    const edge = { class: "edge", label: "", width: 0, points: { show: false } };
    const low = add(line.low, edge), high = add(line.high, edge);
    if (chart.joined) bands.push({ series: [high, low], fill: `${line.colour}33` });
    const seeds = Object.entries(line.seeds).map(([seed, values]) =>
      add(values, { ...look, width: 1, show: false, class: "seed", label: `${line.name}, seed ${seed}`,
                    value: (u, v) => v == null ? "-" : digits(v), points: { show: false } }));
    Object.assign(line, { own, edges: [low, high], indices: seeds });
  }
  return { series, data, bands };
}

// A line's value at a place in words: of points that stand alone, wherever the mouse is.
function said(chart, line, at) {
  if (!chart.joined) at = line.values.findIndex(value => value != null);
  const mean = at == null ? null : line.values[at];
  if (mean == null) return "-";
  const low = line.low[at], high = line.high[at], n = ` (n ${line.n[at]})`;
  if (low === high) return digits(mean) + n;
  if (chart.spread === "±") return `${digits(mean)} ± ${digits((high - low) / 2, 2)}${n}`;
  return `${digits(mean)}, ${chart.spread} ${digits(low)} to ${digits(high)}${n}`;
}

// An axis begins a little before its lowest value and ends a little behind its highest.
function range(log, margin, least) {
  return (u, low, high) => {
    if (low == null) return [0, 1];
    const [from, to] = log ? [Math.log(low), Math.log(high)] : [low, high];
    const room = Math.max((to - from) * margin, least);
    return log ? [Math.exp(from - room), Math.exp(to + room)] : [from - room, to + room];
  };
}

function strokes(u, from, to, text) {
  const { ctx, bbox } = u, [left, right] = [from, to].map(place => u.valToPos(place, "x", true));
  ctx.save();
  ctx.beginPath();
  ctx.rect(left, bbox.top, right - left, bbox.height);
  ctx.clip();
  ctx.strokeStyle = colour("--rule");
  ctx.lineWidth = devicePixelRatio;
  ctx.beginPath();
  for (let x = left - bbox.height; x < right; x += HATCH * devicePixelRatio) {
    ctx.moveTo(x, bbox.top + bbox.height);
    ctx.lineTo(x + bbox.height, bbox.top);
  }
  ctx.stroke();
  ctx.restore();
  if (!text) return;
  ctx.save();
  Object.assign(ctx, { fillStyle: colour("--ink"), textAlign: "center", textBaseline: "bottom", font: font() });
  ctx.fillText(text, (left + right) / 2, bbox.top - 2 * devicePixelRatio);
  ctx.restore();
}

// Behind the lines: where something is left out, and the level to compare with.
function behind(chart) {
  return u => {
    for (const { text, spans } of chart.absent) {
      const widest = spans.reduce((one, other) => other[1] - other[0] > one[1] - one[0] ? other : one);
      for (const span of spans) strokes(u, ...span, span === widest ? text : "");
    }
    if (!chart.level) return;
    const { ctx, bbox } = u, y = u.valToPos(chart.level[0], "y", true);
    ctx.save();
    ctx.setLineDash([2 * devicePixelRatio, 3 * devicePixelRatio]);
    Object.assign(ctx, { strokeStyle: colour("--ink"), fillStyle: colour("--ink"), font: font() });
    Object.assign(ctx, { textAlign: "right", textBaseline: "bottom" });
    ctx.beginPath();
    ctx.moveTo(bbox.left, y);
    ctx.lineTo(bbox.left + bbox.width, y);
    ctx.stroke();
    ctx.fillText(chart.level[1], bbox.left + bbox.width, y - 2 * devicePixelRatio);
    ctx.restore();
  };
}

// Before the lines: the spread of points that stand alone.
function whiskers(chart) {
  return u => {
    if (chart.joined) return;
    for (const line of chart.lines) {
      if (!u.series[line.own].show) continue;
      const { ctx } = u, half = 4 * devicePixelRatio, at = line.values.findIndex(value => value != null);
      const x = u.valToPos(chart.x[at], "x", true);
      const [low, high] = [line.low[at], line.high[at]].map(value => u.valToPos(value, "y", true));
      ctx.save();
      Object.assign(ctx, { strokeStyle: line.colour, lineWidth: 1.5 * devicePixelRatio });
      ctx.beginPath();
      ctx.moveTo(x, low);
      ctx.lineTo(x, high);
      for (const y of [low, high]) {
        ctx.moveTo(x - half, y);
        ctx.lineTo(x + half, y);
      }
      ctx.stroke();
      ctx.restore();
    }
  };
}

// Pixels that the longest number of an axis needs beside it.
const room = (u, texts) => 16 + 7 * Math.max(3, ...(texts ?? []).map(text => text.length));

function axis(label, more) {
  const line = { stroke: () => colour("--grid"), width: 1 };
  const values = (u, marks) => marks.map(mark => mark == null ? "" : digits(mark, 6));
  return { label, values, stroke: () => colour("--ink"), grid: line, ticks: line,
           font: "12px system-ui", labelFont: "13px system-ui", labelSize: 22, ...more };
}

function draw(figure) {
  const chart = JSON.parse(figure.querySelector("script").textContent), place = figure.querySelector(".chart");
  const { series, data, bands } = columns(chart), last = chart.x.length - 1, [logX, logY] = chart.logs;
  const height = () => Math.max(HEIGHTS[0], Math.min(HEIGHTS[1], 0.6 * place.clientWidth));
  const size = () => ({ width: place.clientWidth, height: height() });
  const atRest = u => u.setLegend({ idx: last }, false);
  const along = chart.joined ? range(logX, 0.02, chart.names ? 0.5 : 0.1) : range(logX, 0.15, logX ? 0.1 : chart.x[last] / 50);
  const levelled = low => chart.level && low != null ? Math.min(low, chart.level[0]) : low;
  const up = range(logY, chart.joined ? 0.05 : 0.15, 1e-9);
  const whole = chart.joined ? { incrs: WHOLE } : {};
  figure.classList.add("live");
  const u = new uPlot({
    ...size(), series, bands,
    scales: {
      x: { time: false, distr: logX ? 3 : 1, range: along },
      y: { distr: logY ? 3 : 1, range: (u, low, high) => up(u, levelled(low), high) },
    },
    axes: [axis(chart.labels[0], logX ? {} : whole), axis(chart.labels[1], { size: room })],
    padding: [chart.absent.length ? 20 : null, null, null, null],
    legend: { markers: { dash: (u, i) => ({ 0: "solid", 2: "dashed" })[u.series[i].dash?.length ?? 0] ?? "dotted" } },
    cursor: { y: false },
    hooks: {
      drawClear: [behind(chart)],
      draw: [whiskers(chart)],
      ready: [atRest],
      setCursor: [u => u.cursor.left < 0 && atRest(u)],
      setSeries: [(u, i, change) => {
        const line = chart.lines.find(line => line.own === i), seeds = place.classList.contains("seeds");
        for (const other of line && change.show != null ? [...line.edges, ...line.indices] : [])
          u.setSeries(other, { show: change.show && (seeds || line.edges.includes(other)) });
      }],
    },
  }, data, place);
  const wrap = u.root.querySelector(".u-wrap");
  wrap.setAttribute("role", "img");
  wrap.setAttribute("aria-labelledby", `${figure.id}-title`);
  const box = figure.querySelector("input");
  box?.addEventListener("change", () => {
    place.classList.toggle("seeds", box.checked);
    u.batch(() => {
      for (const line of chart.lines)
        for (const i of line.indices) u.setSeries(i, { show: box.checked && u.series[line.own].show });
    });
  });
  new ResizeObserver(() => u.setSize(size())).observe(place);
  charts.push(u);
}

for (const figure of document.querySelectorAll("figure.drawn")) draw(figure);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => charts.forEach(u => u.redraw()));
