// Distributions: a strip a row, a dot a sample. One metric is chosen for the whole page.
const chosen = { metric: board.metrics[0]?.key, sample: null };
const drawing = byId("dots");
const STRIP = 30, GAP = 74, TOP = 14, BOTTOM = 26; // pixels

const shape = (tag, attributes, text) => {
  const made = document.createElementNS(drawing.namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  return made;
};
const ticks = (low, high) => {
  if (low === high) [low, high] = [low - .5, high + .5];
  const rough = (high - low) / 5, unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map(m => unit * m).find(s => s >= rough * .999);
  const [first, last] = [Math.floor(low / step + 1e-9), Math.ceil(high / step - 1e-9)];
  return Array.from({ length: last - first + 1 }, (_, i) => Number(((first + i) * step).toPrecision(10)));
};
const order = () => {
  const pair = [byId("first-row").value, byId("second-row").value].map(slug => rowOf.get(slug));
  return [...new Set([...pair, ...board.rows])].filter(Boolean);
};
// Where every dot is: [{slug, sample, x, y, value}].
let placed = [];

const draw = () => {
  const metric = metricOf.get(chosen.metric);
  if (!metric) return;
  const rows = order(), width = Math.max(drawing.parentElement.clientWidth - 28, 260);
  const left = width < 560 ? 112 : 190, right = 14;
  const value = (slug, i) => shownValue(metric, scoreOf(slug, metric.key, i));
  const all = rows.flatMap(row => board.samples.map((_, i) => value(row.slug, i))).filter(v => v !== null);
  const means = rows.map(row => board.summary[row.slug][metric.key]).filter(Boolean);
  const ends = [...all, ...means.flatMap(e => [e.low ?? e.mean, e.high ?? e.mean])];
  const axis = ticks(Math.min(...ends), Math.max(...ends));
  const x = v => left + (v - axis[0]) / (axis[axis.length - 1] - axis[0]) * (width - left - right);
  const joined = rows.length > 1 && byId("first-row").value !== byId("second-row").value;
  const y = row => TOP + STRIP * (row + .5) + (joined && row > 0 ? GAP - STRIP : 0) + (joined && row > 1 ? 14 : 0);
  const height = y(rows.length - 1) + STRIP / 2 + BOTTOM;
  drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
  drawing.setAttribute("aria-label", `${metric.label}: a dot for each of ${board.samples.length} samples, a strip for each row`);
  const shapes = axis.flatMap(tick => [
    shape("path", { class: "grid", d: `M${x(tick)} ${TOP}V${height - BOTTOM}` }),
    shape("text", { x: x(tick), y: height - 8, "text-anchor": "middle" }, String(tick).replace("-", MINUS)),
  ]);
  placed = rows.flatMap((row, r) => board.samples.map((_, i) => ({
    slug: row.slug, sample: i, value: value(row.slug, i), y: y(r) + ((i * 7) % 5 - 2) * 1.8,
  }))).filter(dot => dot.value !== null);
  for (const dot of placed) dot.x = x(dot.value);
  if (joined) {
    const [top, bottom] = rows.slice(0, 2).map(row => new Map(
      placed.filter(dot => dot.slug === row.slug).map(dot => [dot.sample, dot])));
    for (const [sample, a] of top) {
      const b = bottom.get(sample);
      if (b) shapes.push(shape("path", { class: "join", d: `M${a.x} ${a.y}L${b.x} ${b.y}` }));
    }
  }
  for (const dot of placed) {
    const role = rowOf.get(dot.slug).role ? " mark" : "";
    shapes.push(shape("circle", { class: `dot${role}`, "data-sample": dot.sample, cx: dot.x, cy: dot.y, r: 3.5 }));
  }
  const letters = Math.floor((left - 8) / 7.4);
  rows.forEach((row, r) => {
    const short = row.name.length > letters ? `${row.name.slice(0, letters - 1)}\u2026` : row.name;
    const name = shape("text", { x: left - 8, y: y(r) + 4, "text-anchor": "end" }, short);
    name.append(shape("title", {}, row.name));
    shapes.push(name);
    const found = board.summary[row.slug][metric.key];
    if (!found) return;
    shapes.push(shape("path", { class: "mean", d: `M${x(found.mean)} ${y(r) - 10}v20` }));
    if (found.low !== null) shapes.push(shape("path", { class: "mean", d: `M${x(found.low)} ${y(r)}H${x(found.high)}` }));
  });
  drawing.replaceChildren(...shapes, shape("g", { id: "trace" }));
  byId("metric-meaning").textContent = `${metric.label}: ${metric.meaning}.`;
  follow(chosen.sample);
};

// One sample through all rows.
const follow = sample => {
  chosen.sample = sample;
  const dots = placed.filter(dot => dot.sample === sample);
  const trace = byId("trace");
  trace.replaceChildren();
  byId("watch").hidden = sample === null;
  byId("told").textContent = "";
  if (!dots.length) return;
  const metric = metricOf.get(chosen.metric);
  trace.append(shape("polyline", { class: "trace", points: dots.map(d => `${d.x},${d.y}`).join(" ") }),
    ...dots.map(d => shape("circle", { class: "traced", cx: d.x, cy: d.y, r: 5 })));
  byId("told").textContent = `${board.samples[sample].key}: `
    + dots.map(d => `${rowOf.get(d.slug).name} ${written(metric, d.value)}`).join(", ");
};
drawing.addEventListener("pointermove", event => {
  const box = drawing.getBoundingClientRect(), near = { reach: 14, dot: null };
  const scale = drawing.viewBox.baseVal.width / box.width;
  const [px, py] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
  for (const dot of placed) {
    const reach = Math.hypot(dot.x - px, dot.y - py);
    if (reach < near.reach) Object.assign(near, { reach, dot });
  }
  if (near.dot && near.dot.sample !== chosen.sample) follow(near.dot.sample);
});
drawing.addEventListener("keydown", event => {
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowUp: -1, ArrowDown: 1 }[event.key];
  if (!step) return;
  event.preventDefault();
  const line = placed.filter(dot => dot.slug === order()[0].slug).sort((a, b) => a.value - b.value);
  if (!line.length) return;
  const at = line.findIndex(dot => dot.sample === chosen.sample);
  const next = at < 0 ? 0 : Math.min(Math.max(at + step, 0), line.length - 1);
  follow(line[next].sample);
});

// Two rows, metric by metric.
const pairTable = () => {
  const [a, b] = [byId("first-row").value, byId("second-row").value];
  const table = document.querySelector("table.pair");
  const heads = ["Metric", "Difference", "Wins", "p", "p, Holm", "Samples"];
  table.tHead.replaceChildren(make("tr", {}, ...heads.map(text => make("th", { scope: "col" }, make("span", {}, text)))));
  const lines = board.metrics.map(metric => [metric, comparison(a, b, metric.key)]).filter(([, found]) => found);
  table.tBodies[0].replaceChildren(...lines.map(([metric, found]) => {
    const interval = found.low === null ? "" : ` [${written(metric, found.low, true)}, ${written(metric, found.high, true)}]`;
    const cells = [written(metric, found.mean, true) + interval, found.wins.toFixed(2),
      probability(found.p), probability(found.holm), String(found.pairs)];
    return make("tr", { class: verdict(metric, a, b, found) },
      make("th", { scope: "row", title: metric.meaning }, metric.label), ...cells.map(text => make("td", {}, text)));
  }));
  const names = [a, b].map(slug => rowOf.get(slug)?.name);
  byId("pair").firstElementChild.textContent = lines.length
    ? `${names[0]} less ${names[1]}, metric by metric` : `${names[0]} and ${names[1]} were not tested against each other`;
};
const metricChosen = key => {
  chosen.metric = key;
  for (const select of document.querySelectorAll("select.metric")) select.value = key;
  draw();
  list(); // page_players.js
};

const rowNames = board.rows.map(row => [row.slug, row.name]);
fill(byId("first-row"), rowNames, board.leader);
fill(byId("second-row"), rowNames, models.length > 1 ? models[0].slug : board.rows[0]?.slug);
for (const select of document.querySelectorAll("select.metric")) {
  fill(select, board.metrics.map(metric => [metric.key, metric.label]), chosen.metric);
  select.addEventListener("change", () => metricChosen(select.value));
}
for (const id of ["first-row", "second-row"]) byId(id).addEventListener("change", () => { draw(); pairTable(); });
draw();
pairTable();
let drawn = drawing.parentElement.clientWidth;
new ResizeObserver(() => requestAnimationFrame(() => {
  if (drawing.parentElement.clientWidth === drawn) return;
  drawn = drawing.parentElement.clientWidth;
  draw();
})).observe(drawing.parentElement);
