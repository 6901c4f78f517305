"use strict";

// What every part reads. All text from the data goes through textContent.
const board = JSON.parse(document.getElementById("board").textContent);
const byId = id => document.getElementById(id);
const metricOf = new Map(board.metrics.map(metric => [metric.key, metric]));
const rowOf = new Map(board.rows.map(row => [row.slug, row]));
const models = board.rows.filter(row => !row.role);
const MINUS = "\u2212";

const make = (tag, attributes = {}, ...children) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== false) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
};
// A name may be broken after what joins its parts.
const breakable = text => text.split(/(?<=[_:/.,-])/).flatMap((part, i) => i ? [make("wbr"), part] : [part]);
const fill = (select, options, chosen) => {
  select.replaceChildren(...options.map(([value, text]) => make("option", { value }, text)));
  if (chosen !== undefined) select.value = chosen;
};
const written = (metric, value, sign = false) => {
  if (value === null || value === undefined) return "n/a";
  const text = Math.abs(value).toFixed(metric.digits);
  return (value < 0 && Number(text) ? MINUS : sign ? "+" : "") + text;
};
// How bad a value is: less is better. What is best at zero is shown by its size.
const loss = (metric, value) => ({
  high: -value, low: value, zero: Math.abs(value), one: Math.abs(value - 1),
})[metric.better];
const shownValue = (metric, value) =>
  value !== null && metric.better === "zero" ? Math.abs(value) : value;
const scoreOf = (slug, key, index) => (board.scores[slug][key] || [])[index] ?? null;

// One row less another, as results.json has it or turned round.
const comparison = (a, b, key) => {
  const straight = (board.comparisons[`${a}|${b}`] || {})[key];
  const found = straight || (board.comparisons[`${b}|${a}`] || {})[key];
  if (!found) return null;
  const { mean, low, high, pairs } = found.difference, { wins, p, holm } = found;
  if (straight) return { mean, low, high, pairs, wins, p, holm };
  const turned = value => value === null ? null : -value;
  return { mean: -mean, low: turned(high), high: turned(low), pairs, wins: 1 - wins, p, holm };
};
const verdict = (metric, a, b, found) => {
  if (found.holm === null || found.holm > 1 - board.level) return "";
  const [mine, theirs] = [a, b].map(slug => loss(metric, board.summary[slug][metric.key].mean));
  return mine < theirs ? "better" : mine > theirs ? "worse" : "";
};
const probability = p => p === null ? "n/a" : p < .001 ? "< 0.001" : p.toFixed(3);

// Tables made beforehand: a click on a header sorts by it, another turns the order round.
for (const table of document.querySelectorAll("table:not([class])")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => header.firstChild.addEventListener("click", () => {
    const turn = header.getAttribute("aria-sort") === "descending" ? 1 : -1;
    headers.forEach(other => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", turn < 0 ? "descending" : "ascending");
    const value = row => row.cells[column].dataset.value;
    const order = (one, two) => {
      const a = value(one), b = value(two);
      if (a === "" || b === "") return (a === "") - (b === "");
      const difference = a - b;
      return turn * (Number.isNaN(difference) ? a.localeCompare(b) : difference);
    };
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
  }));
}

// Leaderboard: ceiling rows stay on top and floor rows below, whatever it is sorted by.
const sorting = { key: null, turn: 1 };
const failed = slug => Object.keys(board.failures[slug] || {}).length;

const rank = (slug, key) => {
  if (key === "row") return rowOf.get(slug).name;
  if (key === "failures") return failed(slug);
  const found = board.summary[slug][key];
  return found ? loss(metricOf.get(key), found.mean) : null;
};
const sorted = rows => {
  if (sorting.key === null) return rows;
  return [...rows].sort((one, two) => {
    const a = rank(one.slug, sorting.key), b = rank(two.slug, sorting.key);
    if (a === null || b === null) return (a === null) - (b === null);
    return sorting.turn * (typeof a === "string" ? a.localeCompare(b) : a - b);
  });
};
const spans = new Map(board.metrics.map(({ key }) => {
  const found = board.rows.map(row => board.summary[row.slug][key]).filter(Boolean);
  const ends = found.flatMap(e => [e.mean, e.low ?? e.mean, e.high ?? e.mean]);
  return [key, [Math.min(...ends), Math.max(...ends)]];
}));
const bar = (key, found) => {
  const [first, last] = spans.get(key), share = v => 100 * (v - first) / ((last - first) || 1);
  const made = make("span", { class: "bar", "aria-hidden": "true" });
  const interval = make("i"), mean = make("b");
  if (found.low !== null) {
    interval.style.left = `${share(found.low)}%`;
    interval.style.width = `${share(found.high) - share(found.low)}%`;
    made.append(interval);
  }
  mean.style.left = `${share(found.mean)}%`;
  made.append(mean);
  return made;
};
const scoreCell = (row, metric, baseline) => {
  const found = board.summary[row.slug][metric.key];
  if (!found) return make("td", { class: "dim" }, "n/a");
  const cell = make("td", {}, make("span", { class: "value" }, written(metric, found.mean)));
  const interval = found.low === null ? "" : `[${written(metric, found.low)}, ${written(metric, found.high)}]`;
  const some = found.undefined ? ` of ${found.pairs}` : "";
  cell.append(make("small", {}, interval + some), bar(metric.key, found));
  const apart = baseline && row.slug !== baseline && comparison(row.slug, baseline, metric.key);
  if (apart) {
    const word = verdict(metric, row.slug, baseline, apart);
    const mark = { better: "\u25b2 better ", worse: "\u25bc worse ", "": "" }[word];
    cell.append(make("small", {
      class: `against ${word}`,
      title: `${row.name} less ${rowOf.get(baseline).name}; p, Holm: ${probability(apart.holm)}`,
    }, `${mark}${written(metric, apart.mean, true)}, p ${probability(apart.holm)}`));
  }
  return cell;
};
const leaderboard = () => {
  const every = byId("every-metric").checked, baseline = byId("baseline").value;
  const metrics = board.metrics.filter(metric => every || metric.main || metric.key === sorting.key);
  const table = document.querySelector("table.board");
  const head = (key, label, note) => {
    const best = key === "row" ? "from A to Z" : "best first", worst = key === "row" ? "from Z to A" : "worst first";
    const mine = sorting.key === key;
    const button = make("button", { type: "button", title: note, "data-key": key }, label);
    if (mine) button.append(make("small", {}, sorting.turn > 0 ? `\u25bc ${best}` : `\u25b2 ${worst}`));
    button.addEventListener("click", () => {
      sorting.turn = mine ? -sorting.turn : 1;
      sorting.key = key;
      leaderboard();
      table.querySelector(`button[data-key="${CSS.escape(key)}"]`).focus();
    });
    // The order of the numbers themselves, as they are read out.
    const down = key !== "row" && metricOf.get(key)?.better === "high";
    const order = (sorting.turn > 0) === down ? "descending" : "ascending";
    return make("th", { scope: "col", "aria-sort": mine ? order : null }, button);
  };
  table.tHead.replaceChildren(make("tr", {},
    head("row", "Row", "how the video was made"),
    ...metrics.map(metric => head(metric.key, metric.label, metric.meaning)),
    head("failures", "Failures \u2193", "samples with a failure tag")));
  const line = row => make("tr", { class: row.role || "model", "data-slug": row.slug },
    make("th", { scope: "row" }, ...breakable(row.name),
      ...(row.role ? [make("small", { class: "role" }, row.role)] : []),
      ...(row.slug === baseline ? [make("small", { class: "role" }, "compared with")] : []),
      ...(row.role || row.protocol === "video" ? [] : [make("small", {}, `shown: ${row.protocol}`)]),
      ...(row.hears === "own" ? [] : [make("small", {}, `hears: ${row.hears}`)])),
    ...metrics.map(metric => scoreCell(row, metric, baseline)),
    make("td", {}, String(failed(row.slug))));
  [...table.tBodies].forEach(body => body.remove());
  for (const role of ["ceiling", "", "floor"]) {
    const rows = board.rows.filter(row => row.role === role);
    table.append(make("tbody", {}, ...(role ? rows : sorted(rows)).map(line)));
  }
};

const compared = board.rows.filter(row => Object.keys(board.comparisons)
  .some(pair => pair.split("|").includes(row.slug)));
fill(byId("baseline"), [["", "no row"], ...compared.map(row => [row.slug, row.name])],
  compared.length > 1 ? compared[0].slug : "");
byId("baseline").parentElement.hidden = !compared.length;
byId("leaderboard-note").textContent = `Mean over ${board.samples.length} sample(s) of `
  + `${new Set(board.samples.map(sample => sample.person)).size} person(s); in brackets and as a bar its `
  + `${Math.round(100 * board.level)} % interval, people drawn with replacement. Click a header to sort, best first. `
  + "Ceiling and floor rows are marks to read the others by and stay in their place. "
  + "Against a row: mean difference and p of a sign-flip test over people, Holm-corrected over all metrics.";
byId("baseline").addEventListener("change", leaderboard);
byId("every-metric").addEventListener("change", leaderboard);
leaderboard();
