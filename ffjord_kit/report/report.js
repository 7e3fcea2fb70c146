// Draws the report from the JSON of this page. Texts of the data reach the page as text alone, never as markup.
"use strict";
(() => {
const report = JSON.parse(document.getElementById("content").textContent);
const SETS = {fitted: ["data", "rows of the fit"], unseen: ["unseen", "held-out rows"], draws: ["draws", "draws of the model"]};
const ICONS = {good: "✓", fair: "~", bad: "✗", unsure: "?"};
const SHOWN = 700, PANELS = 4, MOST_PANELS = 6, BINS = 28;
const main = document.getElementById("main");
const redraws = new Set();

// ---- elements ----

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function section(id, title, ...children) {
  const part = el("section", {id, "aria-labelledby": id + "-title"}, el("h2", {id: id + "-title"}, title), ...children);
  main.append(part);
  document.getElementById("contents").append(el("a", {href: "#" + id}, title));
  return part;
}

const note = (...text) => el("p", {class: "note"}, ...text);
const names = pairs => el("dl", {}, ...pairs.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
const folded = (title, ...children) => el("details", {}, el("summary", {}, title), ...children);

function table(titles, rows, kind = "") {
  const head = el("thead", {}, el("tr", {}, ...titles.map(title => el("th", {scope: "col"}, title))));
  const body = rows.map(row => el("tr", {}, ...row.map(cell => el("td", {class: "number"}, cell))));
  return el("table", {class: "stacked " + kind}, head, el("tbody", {}, ...body));
}

function choice(label, options, chosen, onchange) {
  const entries = options.map((text, value) => el("option", {value, selected: value === chosen}, text));
  return el("label", {}, label, el("select", {onchange: event => onchange(Number(event.target.value))}, ...entries));
}

// ---- numbers ----

const show = value => value === 0 ? "0" : Math.abs(value) >= 1e5 || Math.abs(value) < 1e-3
  ? value.toExponential(1).replace("e+", "e") : String(Number(value.toPrecision(4)));
const finite = values => values.filter(value => value !== null);
const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
function deviation(values) {
  const middle = mean(values);
  return Math.sqrt(mean(values.map(value => (value - middle) ** 2)));
}

function quantile(values, share) {
  const sorted = Float64Array.from(finite(values)).sort();
  return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))] : 0;
}

// The range of nearly all values, with a margin: a few outliers do not change it.
function range(...lists) {
  const low = Math.min(...lists.filter(each => each.length).map(each => quantile(each, .004)));
  const high = Math.max(...lists.filter(each => each.length).map(each => quantile(each, .996)));
  const margin = (high - low || Math.abs(high) || 1) * .06;
  return [low - margin, high + margin];
}

function ticks([low, high], count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map(each => each * power).find(each => each >= raw);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-9; value += step) {
    found.push(Math.abs(value) < step * 1e-6 ? 0 : value);
  }
  return found;
}

const places = count => Array.from({length: Math.min(count, SHOWN)}, (_, i) => Math.floor(i * count / Math.min(count, SHOWN)));

// ---- canvases ----

const colour = name => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

// A canvas that is drawn again when its width or the colours change.
function picture(label, ratio, draw) {
  const canvas = el("canvas", {role: "img", "aria-label": label});
  canvas.redraw = () => {
    const width = canvas.clientWidth, scale = window.devicePixelRatio || 1;
    if (!width) return;
    const height = Math.round(width * (typeof ratio === "function" ? ratio(width) : ratio));
    canvas.style.height = height + "px";
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    const context = canvas.getContext("2d");
    context.scale(scale, scale);
    context.font = "12px system-ui, sans-serif";
    draw(context, width, height);
  };
  new ResizeObserver(canvas.redraw).observe(canvas);
  redraws.add(canvas.redraw);
  return canvas;
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach(redraw => redraw()));

// Axes of a box; returns the maps from values to pixels.
function axes(context, box, xs, ys, {xlabel = "", ylabel = "", xticks = true, yticks = true} = {}) {
  const x = value => box.left + (value - xs[0]) / (xs[1] - xs[0]) * box.width;
  const y = value => box.top + box.height - (value - ys[0]) / (ys[1] - ys[0]) * box.height;
  context.strokeStyle = colour("line");
  context.lineWidth = 1;
  context.strokeRect(box.left, box.top, box.width, box.height);
  context.fillStyle = colour("muted");
  context.textAlign = "center";
  context.textBaseline = "top";
  if (xticks) for (const value of ticks(xs, Math.max(2, box.width / 65))) {
    context.fillText(show(value), x(value), box.top + box.height + 4);
  }
  if (xlabel) context.fillText(fit(context, xlabel, box.width), box.left + box.width / 2, box.top + box.height + (xticks ? 19 : 4));
  context.textAlign = "right";
  context.textBaseline = "middle";
  if (yticks) for (const value of ticks(ys, Math.max(2, box.height / 36))) context.fillText(show(value), box.left - 4, y(value));
  if (ylabel) {
    context.save();
    context.translate(8, box.top + box.height / 2);
    context.rotate(-Math.PI / 2);
    context.textAlign = "center";
    context.fillText(fit(context, ylabel, box.height), 0, 0);
    context.restore();
  }
  return {x, y};
}

function fit(context, text, width) {
  let short = text;
  while (short.length > 3 && context.measureText(short).width > width) short = short.slice(0, -2) + "…";
  return short;
}

function clipped(context, box, draw) {
  context.save();
  context.beginPath();
  context.rect(box.left, box.top, box.width, box.height);
  context.clip();
  draw();
  context.restore();
}

// Dots for rows of the fit, squares for held-out rows, triangles for draws: the shapes tell them apart without colour.
function mark(context, kind, x, y, size) {
  context.beginPath();
  if (kind === "fitted") context.arc(x, y, size, 0, 7);
  else if (kind === "unseen") context.rect(x - size, y - size, 2 * size, 2 * size);
  else {
    context.moveTo(x, y - 1.3 * size);
    context.lineTo(x + 1.2 * size, y + size);
    context.lineTo(x - 1.2 * size, y + size);
  }
  context.fill();
}

function line(context, at, xs, ys) {
  context.beginPath();
  let down = false;
  xs.forEach((value, i) => {
    if (ys[i] === null) { down = false; return; }
    if (down) context.lineTo(at.x(value), at.y(ys[i])); else context.moveTo(at.x(value), at.y(ys[i]));
    down = true;
  });
  context.stroke();
}

// A chart of lines over one axis, with a band around zero where there is one.
function chart(label, {x, lines, band = null, best = null, xlabel = "", ylabel = ""}) {
  return picture(label, .62, (context, width, height) => {
    const box = {left: 62, top: 10, width: width - 84, height: height - 52};
    const values = lines.flatMap(each => finite(each.y)).concat(band ? band.concat(band.map(value => -value)) : []);
    const at = axes(context, box, [x[0], x[x.length - 1]], range(values), {xlabel, ylabel});
    clipped(context, box, () => {
      if (band) {
        context.fillStyle = colour("line");
        context.beginPath();
        x.forEach((value, i) => context.lineTo(at.x(value), at.y(band[i])));
        for (let i = x.length - 1; i >= 0; i--) context.lineTo(at.x(x[i]), at.y(-band[i]));
        context.fill();
      }
      for (const each of lines) {
        context.strokeStyle = colour(each.colour);
        context.lineWidth = each.width || 1.8;
        line(context, at, x, each.y);
      }
    });
    if (best !== null) {
      context.fillStyle = colour("draws");
      mark(context, "draws", at.x(x[best]), at.y(lines[0].y[best]), 5);
    }
  });
}

// ---- sections that every report has ----

function verdict(word) {
  return el("span", {class: "verdict " + word}, el("span", {"aria-hidden": "true"}, ICONS[word] + " "), word);
}

function showSummary() {
  section("summary", "What was fitted", names(report.summary),
    ...report.details.length ? [folded("Every option and result", names(report.details))] : []);
  const headline = document.getElementById("headline"), first = report.numbers[0];
  headline.append(`${first.name}: ${first.value}. `);
  if (report.checks.verdict) headline.append("The checks find it, on the whole, ", verdict(report.checks.verdict), ".");
}

function showTraining() {
  if (!report.training.length) return;
  const charts = report.training.map(curve => {
    const best = curve.best === null ? "" : `; best ${show(curve.y[curve.best])} at step ${curve.x[curve.best].toLocaleString("en")}`;
    const last = finite(curve.y).at(-1);
    return el("div", {}, el("h3", {}, curve.title), chart(
      `${curve.title} from step ${curve.x[0]} to ${curve.x.at(-1)}; at the end ${show(last)}${best}`,
      {x: curve.x, lines: [{y: curve.y, colour: "data"}], best: curve.best, xlabel: "step"}), note(`nats; at the end ${show(last)}${best}`));
  });
  const marked = report.training.some(curve => curve.best !== null) ? [note("The triangle marks the best validation, whose weights were kept.")] : [];
  section("training", "Training", ...marked, el("div", {class: "grid"}, ...charts));
}

function showChecks() {
  const checks = report.checks;
  if (checks.missing) { section("checks", "Calibration and checks", el("p", {}, checks.missing)); return; }
  const far = Math.max(...checks.regions.map(Math.abs));
  const outside = checks.regions.filter((value, i) => Math.abs(value) > checks.band[i]).length;
  const regions = chart(`Share of rows in regions of highest density, less the probability: at most ${show(far)} off; ${outside} of 99 places lie outside the band.`,
    {x: checks.probability, lines: [{y: checks.regions, colour: "data"}], band: checks.band, xlabel: "probability of the region", ylabel: "share − probability"});
  const base = chart(`Share of rows below each quantile of the base, less the quantile, for ${checks.base.length} coordinates.`,
    {x: checks.probability, lines: checks.base.map(y => ({y, colour: "unseen", width: 1})), band: checks.band, xlabel: "quantile of the base", ylabel: "share − quantile"});
  const rows = checks.findings.map(each => [verdict(each.verdict), each.name,
    el("span", {}, each.measured, ...each.remedy ? [el("br"), "→ " + each.remedy] : [])]);
  section("checks", "Calibration and checks",
    el("p", {}, `Measured on ${checks.rows} held-out rows. A calibrated model stays in the band, which chance leaves in one case of a hundred at a place.`),
    el("div", {class: "grid"}, el("div", {}, el("h3", {}, "Regions of highest density"), regions, note(`${outside} of 99 places are outside the band`)),
      el("div", {}, el("h3", {}, "Rows at the base"), base, note("one line a coordinate"))),
    el("h3", {}, "Verdicts"), table(["verdict", "check", "measured"], rows, "words"));
}

function showNumbers() {
  section("numbers", "Numbers, errors and receipts", table(["number", "value", "how it was measured"], report.numbers.map(each => [each.name, each.value, each.source]), "words"));
}

// ---- sections of tables ----

const pair = {x: 0, y: 1, listeners: [], choose(axis, column) { this[axis] = column; this.listeners.forEach(each => each()); }};

function showTable() {
  if (report.columns.length < 2) pair.y = 0;
  showDensity();
  showFlow();
  showCorner();
  showExtremes();
}

const legend = kinds => kinds.map(kind => el("span", {}, el("span", {class: "key " + SETS[kind][0], "aria-hidden": "true"}), " " + SETS[kind][1]));
const present = () => Object.keys(SETS).filter(kind => report.points[kind].length);

function showDensity() {
  const names = report.columns, shown = {shade: true, fitted: false, unseen: true, draws: true};
  const single = names.length === 1;
  const canvas = picture("", single ? .6 : .78, (context, width, height) => {
    const box = {left: 58, top: 8, width: width - 80, height: height - 50};
    if (single) drawCurve(context, box, shown); else drawPlane(context, box, shown);
  });
  const describe = () => {
    const at = single ? names[0] : `${names[pair.x]} and ${names[pair.y]}`;
    canvas.setAttribute("aria-label", `Density of ${at}, with ${present().map(kind => SETS[kind][1]).join(", ")}; the table of columns below has their means and deviations.`);
    source.textContent = exact() ? `The ${single ? "line" : "shade"} is the density itself.` : single ? "" : `The shade is estimated from ${report.points.draws[0].length.toLocaleString("en")} draws of the model, smoothed.`;
    canvas.redraw();
  };
  const source = note();
  const layer = (name, key, text) => el("label", {}, el("input", {type: "checkbox", checked: shown[name], onchange: event => { shown[name] = event.target.checked; canvas.redraw(); }}),
    el("span", {class: "key " + key, "aria-hidden": "true"}), text);
  const choices = single ? [] : [choice("across", names, pair.x, column => pair.choose("x", column)), choice("up", names, pair.y, column => pair.choose("y", column))];
  section("density", "Density", el("div", {class: "controls"}, ...choices, layer("shade", "shade", "density"),
    ...present().map(kind => layer(kind, ...SETS[kind]))), el("div", {class: "square"}, canvas), source);
  pair.listeners.push(describe);
  describe();
}

const exact = () => report.density !== null && (report.columns.length === 1 || (pair.x !== pair.y));
const bounds = column => report.density ? report.density.bounds[column] : range(...present().map(kind => report.points[kind][column]));

function drawCurve(context, box, shown) {
  const xs = bounds(0), size = report.density ? report.density.size : 0;
  const grid = Array.from({length: size}, (_, i) => xs[0] + (xs[1] - xs[0]) * i / (size - 1));
  const heights = size ? report.density.log_prob.map(value => value === null ? 0 : Math.exp(value)) : [];
  const bars = present().filter(kind => shown[kind]).map(kind => [kind, histogram(report.points[kind][0], xs)]);
  const top = 1.08 * Math.max(...heights, ...bars.flatMap(([, counts]) => counts), 1e-12);
  const at = axes(context, box, xs, [0, top], {xlabel: report.columns[0], ylabel: "density"});
  bars.forEach(([kind, counts]) => { context.strokeStyle = colour(SETS[kind][0]); context.lineWidth = 1.3; steps(context, at, counts, xs); });
  if (shown.shade && size) { context.strokeStyle = colour("shade"); context.lineWidth = 3; line(context, at, grid, heights); }
}

function histogram(values, [low, high], bins = BINS) {
  const counts = new Array(bins).fill(0), width = (high - low) / bins;
  for (const value of values) {
    const bin = Math.floor((value - low) / width);
    if (bin >= 0 && bin < bins) counts[bin] += 1 / (values.length * width);
  }
  return counts;
}

function steps(context, at, counts, [low, high]) {
  context.beginPath();
  counts.forEach((count, i) => [i, i + 1].forEach(edge => context.lineTo(at.x(low + (high - low) * edge / counts.length), at.y(count))));
  context.stroke();
}

function drawPlane(context, box, shown) {
  const xs = bounds(pair.x), ys = bounds(pair.y);
  const at = axes(context, box, xs, ys, {xlabel: report.columns[pair.x], ylabel: report.columns[pair.y]});
  clipped(context, box, () => {
    if (shown.shade) shade(context, box, exact() ? heights() : smoothed(report.points.draws[pair.x], report.points.draws[pair.y], xs, ys));
    for (const kind of present().filter(each => shown[each])) {
      const columns = report.points[kind];
      context.fillStyle = colour(SETS[kind][0]);
      context.globalAlpha = .7;
      for (const i of places(columns[0].length)) mark(context, kind, at.x(columns[pair.x][i]), at.y(columns[pair.y][i]), 1.9);
      context.globalAlpha = 1;
    }
  });
}

// Densities of the grid of a table of two columns, row by row from below; turned where the columns are.
function heights() {
  const {size, log_prob} = report.density, values = log_prob.map(value => value === null ? 0 : Math.exp(value));
  return {size, values: pair.x === 0 ? values : values.map((_, i) => values[(i % size) * size + Math.floor(i / size)])};
}

function smoothed(first, second, xs, ys) {
  const size = 56, width = 1.8, kernel = Array.from({length: 13}, (_, i) => Math.exp(-.5 * ((i - 6) / width) ** 2));
  let values = new Array(size * size).fill(0);
  first.forEach((value, i) => {
    const column = Math.floor((value - xs[0]) / (xs[1] - xs[0]) * size), row = Math.floor((second[i] - ys[0]) / (ys[1] - ys[0]) * size);
    if (column >= 0 && column < size && row >= 0 && row < size) values[row * size + column] += 1;
  });
  for (const [stride, along] of [[1, i => i % size], [size, i => Math.floor(i / size)]]) {
    values = values.map((_, i) => kernel.reduce((sum, weight, k) => {
      const place = along(i) + k - 6;
      return place < 0 || place >= size ? sum : sum + weight * values[i + (k - 6) * stride];
    }, 0));
  }
  return {size, values};
}

function shade(context, box, {size, values}) {
  const top = [...values].sort((a, b) => a - b)[Math.floor(.998 * (values.length - 1))] || Math.max(...values) || 1;
  const small = el("canvas", {width: size, height: size}), inner = small.getContext("2d"), pixels = inner.createImageData(size, size);
  const [red, green, blue] = colour("shade").match(/[0-9a-f]{2}/gi).map(part => parseInt(part, 16));
  values.forEach((value, i) => {
    const place = 4 * ((size - 1 - Math.floor(i / size)) * size + i % size);
    pixels.data.set([red, green, blue, 215 * Math.sqrt(Math.min(1, value / top))], place);
  });
  inner.putImageData(pixels, 0, 0);
  context.drawImage(small, box.left, box.top, box.width, box.height);
}

// ---- the flow ----

// A slider of time with a button that plays it; `draw` is called with the time.
function player(draw) {
  let timer = null;
  const slider = el("input", {type: "range", id: "time", min: 0, max: 100, step: 1, value: 100, oninput: () => draw(say())});
  const output = el("output", {for: "time"});
  const say = () => {
    const time = slider.value / 100;
    output.textContent = `t = ${time.toFixed(2)}`;
    slider.setAttribute("aria-valuetext", `t = ${time.toFixed(2)}, where 0 is noise and 1 is data`);
    return time;
  };
  const stop = () => { clearInterval(timer); timer = null; button.textContent = "Play"; };
  const button = el("button", {type: "button", id: "play", onclick: () => {
    if (timer) { stop(); return; }
    const step = matchMedia("(prefers-reduced-motion: reduce)").matches ? 25 : 1;
    if (slider.value >= 100) slider.value = 0;
    button.textContent = "Pause";
    timer = setInterval(() => { slider.value = Number(slider.value) + step; draw(say()); if (slider.value >= 100) stop(); }, step * 40);
  }}, "Play");
  say();
  return {time: () => slider.value / 100, controls: el("div", {class: "controls"}, button, el("label", {class: "wide"}, "noise", slider, "data"), output)};
}

// The state of a column's paths at a time, between the stored ones in a straight line.
function between(states, times, time) {
  const last = times.length - 1, place = Math.min(last - 1, Math.max(0, times.findIndex(each => each > time) - 1));
  const index = time >= 1 ? last - 1 : place, share = (time - times[index]) / (times[index + 1] - times[index]);
  return states(index).map((value, i) => value + share * (states(index + 1)[i] - value));
}

function showFlow() {
  const {missing, times, x} = report.flow;
  if (missing) { section("flow", "The flow", el("p", {}, missing)); return; }
  const single = report.columns.length === 1, count = x[0][0].length;
  const ranks = Array.from({length: count}, (_, i) => i * 7 % count);
  const place = (column, time) => between(index => x[index][column], times, time);
  const vertical = time => single ? ranks : place(pair.y, time);
  const canvas = picture("", single ? .4 : .78, (context, width, height) => {
    const box = {left: 58, top: 8, width: width - 80, height: height - 50}, time = play.time();
    const xs = range(x[0][pair.x], x.at(-1)[pair.x]), ys = single ? [0, count] : range(x[0][pair.y], x.at(-1)[pair.y]);
    const at = axes(context, box, xs, ys, {xlabel: report.columns[pair.x], ylabel: single ? "draw" : report.columns[pair.y], yticks: !single});
    clipped(context, box, () => {
      const back = Math.max(0, time - .12), from = [place(pair.x, back), vertical(back)], to = [place(pair.x, time), vertical(time)];
      const inside = brushed(x.at(-1));
      context.lineWidth = 1;
      for (let i = 0; i < count; i++) {
        context.globalAlpha = inside[i] ? 1 : .2;
        context.strokeStyle = colour("muted");
        context.beginPath();
        context.moveTo(at.x(from[0][i]), at.y(from[1][i]));
        context.lineTo(at.x(to[0][i]), at.y(to[1][i]));
        context.stroke();
        context.fillStyle = colour("draws");
        mark(context, "draws", at.x(to[0][i]), at.y(to[1][i]), 2.2);
      }
      context.globalAlpha = 1;
    });
  });
  canvas.id = "paths";
  const describe = () => {
    canvas.setAttribute("aria-label", `${count} draws at time ${play.time().toFixed(2)} on their way from noise to data, in ${single ? report.columns[0] : report.columns[pair.x] + " and " + report.columns[pair.y]}`);
    canvas.redraw();
  };
  const play = player(describe);
  section("flow", "The flow", el("p", {}, `${count} draws on their way from noise (t = 0) to data (t = 1), in the columns chosen above. ` +
    `Their paths are those of the continuous flow, kept at ${times.length} times, with straight lines between.`), play.controls, el("div", {class: "square"}, canvas));
  pair.listeners.push(describe);
  brush.listeners.push(() => canvas.redraw());
  describe();
}

// ---- the corner plot, and its brush ----

const brush = {sides: new Map(), listeners: [], set(changes) {
  for (const [column, side] of changes) if (side) this.sides.set(column, side); else this.sides.delete(column);
  this.listeners.forEach(each => each());
}};

const within = (side, span) => side.map(value => Math.min(span[1], Math.max(span[0], value)));

function brushed(columns) {
  const sides = [...brush.sides];
  return columns[0].map((_, i) => sides.every(([column, [low, high]]) => columns[column][i] >= low && columns[column][i] <= high));
}

function showCorner() {
  const names = report.columns, compared = report.points.fitted.length ? "fitted" : "unseen";
  let columns = names.map((_, i) => i).slice(0, PANELS), drag = null, boxes = [];
  const spans = names.map((_, column) => bounds(column));
  const canvas = picture("", () => columns.length === 1 ? .5 : .9, (context, width, height) => {
    boxes = [];
    const gap = 6, left = columns.length > 1 ? 46 : 20, cell = (width - left - 8) / columns.length - gap, tall = (height - 44) / columns.length - gap;
    columns.forEach((down, row) => columns.slice(0, row + 1).forEach((across, column) => {
      const box = {left: left + column * (cell + gap), top: 6 + row * (tall + gap), width: cell, height: tall, across, down};
      boxes.push(box);
      drawCell(context, box, row === columns.length - 1, column === 0);
    }));
  });
  function drawCell(context, box, lowest, first) {
    const xs = spans[box.across], kinds = [compared, "draws"], diagonal = box.across === box.down;
    const labels = {xlabel: lowest ? names[box.across] : "", ylabel: first && !diagonal ? names[box.down] : "", xticks: lowest && box.width > 70, yticks: first && !diagonal && box.height > 45};
    const counts = diagonal ? kinds.map(kind => histogram(report.points[kind][box.across], xs)) : [];
    const at = axes(context, box, xs, diagonal ? [0, 1.1 * Math.max(...counts.flat())] : spans[box.down], labels);
    clipped(context, box, () => kinds.forEach((kind, set) => {
      const points = report.points[kind], inside = brushed(points);
      context.strokeStyle = context.fillStyle = colour(SETS[kind][0]);
      context.lineWidth = 1.3;
      if (diagonal) {
        context.globalAlpha = brush.sides.size ? .35 : 1;
        steps(context, at, counts[set], xs);
        context.globalAlpha = 1;
        const chosen = points[box.across].filter((_, i) => inside[i]);
        if (brush.sides.size && chosen.length) steps(context, at, scaled(histogram(chosen, xs), chosen.length / inside.length), xs);
      } else {
        for (const i of places(points[0].length)) {
          context.globalAlpha = inside[i] ? .75 : .1;
          mark(context, kind, at.x(points[box.across][i]), at.y(points[box.down][i]), 1.3);
        }
        context.globalAlpha = 1;
      }
    }));
    drawBrush(context, box, at, diagonal);
  }
  function drawBrush(context, box, at, diagonal) {
    const [x, y] = [brush.sides.get(box.across), diagonal ? null : brush.sides.get(box.down)];
    if (!x && !y) return;
    const [left, right] = within(x || spans[box.across], spans[box.across]).map(at.x);
    const [bottom, top] = diagonal ? [box.top + box.height, box.top] : within(y || spans[box.down], spans[box.down]).map(at.y);
    clipped(context, box, () => { context.strokeStyle = colour("ink"); context.lineWidth = 1.2; context.strokeRect(left, top, right - left, bottom - top); });
  }
  const scaled = (counts, share) => counts.map(count => count * share);
  const place = event => { const frame = canvas.getBoundingClientRect(); return [event.clientX - frame.left, event.clientY - frame.top]; };
  const value = (box, [x, y]) => [
    spans[box.across][0] + (x - box.left) / box.width * (spans[box.across][1] - spans[box.across][0]),
    spans[box.down][0] + (box.top + box.height - y) / box.height * (spans[box.down][1] - spans[box.down][0])];
  canvas.classList.add("brushable");
  canvas.addEventListener("pointerdown", event => {
    const [x, y] = place(event), box = boxes.find(each => x >= each.left && x <= each.left + each.width && y >= each.top && y <= each.top + each.height);
    if (!box) return;
    drag = {box, start: value(box, [x, y])};
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", event => {
    if (!drag) return;
    const end = value(drag.box, place(event)), side = axis => [Math.min(drag.start[axis], end[axis]), Math.max(drag.start[axis], end[axis])];
    brush.set(drag.box.across === drag.box.down ? [[drag.box.across, side(0)]] : [[drag.box.across, side(0)], [drag.box.down, side(1)]]);
  });
  ["pointerup", "pointercancel"].forEach(name => canvas.addEventListener(name, () => { drag = null; }));

  const told = el("p", {role: "status", id: "brushed"});
  const tell = () => {
    const end = (word, value) => Number.isFinite(value) ? ` ${word} ${show(value)}` : "";
    const sides = [...brush.sides].map(([column, [low, high]]) => names[column] + end("from", low) + end("to", high)).join(", ");
    told.textContent = sides ? `Within ${sides}: ${[compared, "draws"].map(kind => share(kind)).join("; ")}.` : "No brush: drag over a panel, or use the sliders.";
  };
  const share = kind => {
    const inside = brushed(report.points[kind]), count = inside.filter(Boolean).length, part = count / inside.length;
    return `${count} of ${inside.length} ${SETS[kind][1]}, ${(100 * part).toFixed(1)} ± ${(100 * Math.sqrt(part * (1 - part) / inside.length)).toFixed(1)} %`;
  };
  canvas.setAttribute("aria-label", "Corner plot of pairs of columns; the sliders below brush it, and the line below them tells what they hold.");
  const parts = [el("p", {}, "Each column against each other. Drag over a panel to brush: the same rows stand out in all panels, and in the flow."),
    el("div", {class: "controls"}, ...legend([compared, "draws"]))];
  if (names.length > PANELS) parts.push(columnChoice(names, columns, chosen => { columns = chosen; canvas.redraw(); }));
  section("corner", "Columns against each other", ...parts, el("div", {class: "square"}, canvas), brushControls(names, spans), told, folded("Means and standard deviations", momentTable(names)));
  brush.listeners.push(() => { canvas.redraw(); tell(); });
  tell();
}

function columnChoice(names, columns, onchange) {
  const boxes = names.map((name, i) => el("input", {type: "checkbox", checked: columns.includes(i), onchange: () => {
    const chosen = boxes.flatMap((box, place) => box.checked ? [place] : []);
    boxes.forEach(box => { box.disabled = chosen.length >= MOST_PANELS && !box.checked || chosen.length === 1 && box.checked; });
    onchange(chosen);
  }}));
  return el("fieldset", {}, el("legend", {}, `Columns shown, at most ${MOST_PANELS}`), el("div", {class: "controls columns"}, ...names.map((name, i) => el("label", {}, boxes[i], name))));
}

// The brush by keyboard: a column, and the two ends of its range.
function brushControls(names, spans) {
  let column = 0;
  const ends = ["from", "to"].map((word, end) => el("input", {type: "range", min: 0, max: 100, value: 100 * end, id: "brush-" + word, oninput: () => {
    const [low, high] = ends.map(each => Number(each.value)).sort((a, b) => a - b);
    const at = value => spans[column][0] + value / 100 * (spans[column][1] - spans[column][0]);
    const side = [low > 0 ? at(low) : -Infinity, high < 100 ? at(high) : Infinity];
    brush.set([[column, side.some(Number.isFinite) ? side : null]]);
  }}));
  const follow = () => {
    const side = within(brush.sides.get(column) || spans[column], spans[column]);
    ends.forEach((each, end) => {
      if (document.activeElement !== each) each.value = 100 * (side[end] - spans[column][0]) / (spans[column][1] - spans[column][0]);
      each.setAttribute("aria-valuetext", `${names[column]} ${show(side[end])}`);
    });
  };
  brush.listeners.push(follow);
  follow();
  return el("fieldset", {}, el("legend", {}, "Brush by keyboard"), el("div", {class: "controls"},
    choice("column", names, 0, chosen => { column = chosen; follow(); }),
    el("label", {class: "wide"}, "from", ends[0]), el("label", {class: "wide"}, "to", ends[1]),
    el("button", {type: "button", onclick: () => brush.set(names.map((_, each) => [each, null]))}, "Clear")));
}

function momentTable(names) {
  const cell = values => `${show(mean(values))}; ${show(deviation(values))}`;
  const rows = names.map((name, column) => [name, ...present().map(kind => cell(finite(report.points[kind][column])))]);
  return table(["column", ...present().map(kind => `${SETS[kind][1]}: mean; deviation`)], rows);
}

// ---- the most and the least likely ----

function showExtremes() {
  const {threshold, origin, least, most} = report.extremes;
  const list = rows => el("ol", {}, ...rows.map(row => el("li", {}, el("strong", {}, `log p = ${show(row.log_prob)}`), ` (held-out row ${row.row}): ${row.reason}.`,
    row.gains.length ? el("ul", {"aria-label": "Columns that make the row unlikely"}, ...row.gains.map(gain => el("li", {}, gain + "."))) : "",
    folded("Its columns", names(row.cells.map((cell, i) => [report.columns[i], cell]))))));
  section("extremes", "The least and the most likely rows",
    note(`Of the ${origin}, 99 % have a log-density above ${show(threshold)} nats: this is “usual” here. Below an unlikely row stands by how many nats log p rises where one column takes the most plausible of the values tried, and all others stay. Both say what the model takes for usual, not what causes what.`),
    el("div", {class: "grid"}, el("div", {}, el("h3", {}, "Least likely"), list(least)), el("div", {}, el("h3", {}, "Most likely"), list(most))));
}

// ---- sections of images ----

function decoded(sheet) {
  sheet.pixels = sheet.pixels || Uint8Array.from(atob(sheet.bytes), each => each.charCodeAt(0));
  return sheet.pixels;
}

// A sheet of images, each at the same size, with a text under each where there are texts.
function sheetOf(label, sheet, texts = null, pixelsOf = () => decoded(sheet)) {
  const across = width => Math.max(1, Math.min(sheet.count, Math.round(width / Math.max(52, Math.min(96, 1.5 * sheet.width)))));
  const size = width => width / across(width), extra = texts ? 18 : 0;
  const ratio = width => Math.ceil(sheet.count / across(width)) * (size(width) * sheet.height / sheet.width + extra) / width;
  return picture(label, ratio, (context, width) => {
    const one = size(width), tall = one * sheet.height / sheet.width, pixels = pixelsOf();
    context.imageSmoothingEnabled = false;
    for (let i = 0; i < sheet.count; i++) {
      const left = i % across(width) * one, top = Math.floor(i / across(width)) * (tall + extra);
      context.drawImage(tile(sheet, pixels, i), left + 1, top + 1, one - 2, tall - 2);
      if (texts) { context.fillStyle = colour("muted"); context.textAlign = "center"; context.textBaseline = "top"; context.fillText(texts[i], left + one / 2, top + tall + 2); }
    }
  });
}

function tile({height, width, channels}, pixels, place) {
  const canvas = el("canvas", {width, height}), context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const start = place * height * width * channels;
  for (let i = 0; i < height * width; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[start + i * channels + (channels === 3 ? c : 0)];
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function showImages() {
  const {samples, unseen, times, states, least, most, scored} = report.images;
  section("samples", "Samples beside held-out images", el("div", {class: "grid"},
    el("div", {}, el("h3", {}, "Samples of the model"), sheetOf(`${samples.count} samples of the model`, samples)),
    el("div", {}, el("h3", {}, "Held-out images"), sheetOf(`${unseen.count} held-out images`, unseen))));
  const moved = () => between(index => Array.from(decoded(states[index])), times, play.time());
  const canvas = sheetOf("", states[0], null, moved);
  canvas.id = "paths";
  const describe = () => { canvas.setAttribute("aria-label", `${states[0].count} samples at time ${play.time().toFixed(2)} on their way from noise to images`); canvas.redraw(); };
  const play = player(describe);
  section("flow", "The flow", el("p", {}, `${states[0].count} samples on their way from noise (t = 0) to images (t = 1), kept at ${times.length} times.`), play.controls, el("div", {class: "square"}, canvas));
  describe();
  const bits = part => part.bits.map(value => value.toFixed(2));
  section("extremes", "The least and the most likely images", note(`Of ${scored} held-out images, with their bits per dimension: a quick solve, for the order. Simple images are likely, whatever the data.`),
    el("div", {class: "grid"}, el("div", {}, el("h3", {}, "Least likely"), sheetOf(`The least likely images, of ${bits(least).join(", ")} bits per dimension`, least, bits(least))),
      el("div", {}, el("h3", {}, "Most likely"), sheetOf(`The most likely images, of ${bits(most).join(", ")} bits per dimension`, most, bits(most)))));
  section("corner", "Columns against each other", el("p", {}, "Images have no columns to compare."));
}

showSummary();
if (report.kind === "images") showImages(); else showTable();
showTraining();
showChecks();
showNumbers();
})();
