// Videos: the worst and the best samples of a row, or all of them.
const EACH = 6, PAGE = 12; // samples: worst, and as many best; of a long list
const samplesOf = { only: null, length: PAGE };
const REFERENCE = "reference.mp4", STILL = "target.png";

const tagsOf = index => board.rows.flatMap(row =>
  ((board.failures[row.slug] || {})[board.samples[index].key] || []).map(tag => [row, tag]));
const shownRows = () => [...document.querySelectorAll("#rows-shown input:checked")].map(box => rowOf.get(box.value));

const matching = () => {
  const person = byId("person").value, tag = byId("failure").value;
  const rows = new Set(shownRows().map(row => row.slug));
  return board.samples.map((_, index) => index).filter(index => {
    if (samplesOf.only !== null) return index === samplesOf.only;
    if (person && board.samples[index].person !== person.slice(1)) return false;
    const tags = tagsOf(index).filter(([row]) => rows.has(row.slug)).map(([, name]) => name);
    if (tag === "") return true;
    return tag === "none" ? !tags.length : tag === "some" ? tags.length > 0 : tags.includes(tag.slice(1));
  });
};
// From the worst to the best; samples without a value are apart.
const ranked = indices => {
  const metric = metricOf.get(chosen.metric), slug = byId("ranked-row").value;
  if (!metric || !slug) return [[], indices];
  const of = index => scoreOf(slug, metric.key, index);
  const some = indices.filter(index => of(index) !== null);
  some.sort((a, b) => loss(metric, of(b)) - loss(metric, of(a)));
  return [some, indices.filter(index => of(index) === null)];
};

// One clock for every video in view. The one that is heard leads, else the longest.
const clock = { time: 0, playing: false, rate: 1, heard: null };
const loaded = new Set();
const ready = () => [...loaded].filter(video => video.duration > 0);
const leader = () => {
  const videos = ready();
  return videos.includes(clock.heard) ? clock.heard
    : videos.reduce((a, b) => a && a.duration >= b.duration ? a : b, null);
};
// Seconds that a video is ahead; shorter ones go round while the leader goes on.
const apart = (video, time) => {
  const ahead = video.currentTime - time % video.duration;
  return ahead - video.duration * Math.round(ahead / video.duration);
};
const FAR = .3, OFF = .03, NEAR = .01; // seconds: jump; hurry or wait; as fast again
const keepUp = (video, time) => {
  if (video.seeking || video.readyState < 2) return;
  const ahead = apart(video, time), size = Math.abs(ahead);
  if (size > FAR) video.currentTime = time % video.duration;
  else if (size > OFF) video.playbackRate = clock.rate * (1 - Math.sign(ahead) * Math.min(4 * size, .5));
  else if (size < NEAR) video.playbackRate = clock.rate;
};
const frame = 1 / board.fps;
const length = () => leader()?.duration || 0;
const showClock = () => {
  const whole = length(), frames = Math.round(whole / frame);
  byId("scrub").max = whole || 1;
  byId("scrub").value = clock.time;
  const index = Math.max(Math.min(Math.floor(clock.time / frame + 1e-3), frames - 1), 0);
  byId("clock").textContent = `${clock.time.toFixed(2)} of ${whole.toFixed(2)} s, frame ${index}`;
};
const seek = to => {
  clock.time = Math.min(Math.max(to, 0), Math.max(length() - frame / 2, 0));
  for (const video of ready()) video.currentTime = clock.time % video.duration;
  showClock();
};
const roll = video => video.play().catch(error => { if (error.name === "NotAllowedError") stop(); });
const tick = () => {
  if (!clock.playing) return;
  const lead = leader();
  if (lead) {
    clock.time = lead.currentTime;
    if (lead.playbackRate !== clock.rate) lead.playbackRate = clock.rate;
    for (const video of ready()) {
      if (video.paused) roll(video);
      if (video !== lead) keepUp(video, clock.time);
    }
  }
  showClock();
  requestAnimationFrame(tick);
};
const stop = () => {
  clock.playing = false;
  for (const video of loaded) video.pause();
  byId("play").textContent = "Play";
};
const start = () => {
  clock.playing = true;
  byId("play").textContent = "Pause";
  if (length() - clock.time < frame) seek(0);
  requestAnimationFrame(tick);
};
const hear = heard => {
  clock.heard = heard;
  for (const button of document.querySelectorAll("#list .sound")) {
    const video = button.previousElementSibling;
    video.muted = video !== heard;
    button.setAttribute("aria-pressed", String(video === heard));
    button.textContent = video === heard ? "sound on" : "muted";
  }
};
const step = by => { stop(); seek((Math.round(clock.time / frame - .5) + .5 + by) * frame); };
byId("play").addEventListener("click", () => clock.playing ? (stop(), seek(clock.time)) : start());
byId("scrub").addEventListener("input", event => { stop(); seek(Number(event.target.value)); });
byId("back").addEventListener("click", () => step(-1));
byId("forward").addEventListener("click", () => step(1));
byId("speed").addEventListener("change", event => {
  clock.rate = Number(event.target.value);
  for (const video of loaded) video.playbackRate = video.defaultPlaybackRate = clock.rate;
});

// Browsers hold some dozens of open videos at most: only those in view are loaded.
const load = video => {
  const address = video.dataset.address, inside = board.media[address];
  video.src = inside ? `data:video/mp4;base64,${inside}` : address;
  loaded.add(video);
};
const unload = video => {
  loaded.delete(video);
  if (clock.heard === video) hear(null);
  video.pause();
  video.removeAttribute("src");
  video.load();
};
const watcher = new IntersectionObserver(entries => {
  for (const { target, isIntersecting } of entries) {
    for (const video of target.querySelectorAll("video")) {
      if (isIntersecting && !video.src) load(video);
      if (!isIntersecting && video.src) unload(video);
    }
  }
}, { rootMargin: "300px 0px" });

const card = (label, note, content, kind, tags) => {
  const caption = make("figcaption", {}, make("b", {}, ...breakable(label)), make("span", { class: "dim" }, note));
  if (tags.length) {
    const list = tags.map(tag => make("li", {}, tag));
    caption.append(make("ul", { class: "tags", "aria-label": `Failures of ${label}` }, ...list));
  }
  return make("figure", { class: `card ${kind}` }, make("div", { class: "frame" }, ...content), caption);
};
const gone = address => make("p", { class: "gone" },
  `not in this page: it plays from ${decodeURIComponent(address)} beside it`);

const player = (index, name, label, note, kind, tags = []) => {
  const sample = board.samples[index], address = sample.files[name];
  if (!address) return card(label, note, [make("p", { class: "gone" }, "no video")], kind, tags);
  const video = make("video", {
    playsinline: "", muted: "", loop: "", preload: "auto",
    "data-address": address, "aria-label": `${label}, ${sample.key}`,
  });
  video.muted = true;
  video.addEventListener("loadedmetadata", () => {
    if (clock.time) video.currentTime = clock.time % video.duration;
    video.playbackRate = clock.rate;
    showClock();
  });
  video.addEventListener("error", () => {
    if (!video.src) return;
    loaded.delete(video);
    video.parentElement.replaceChildren(gone(address));
  });
  const sound = make("button", {
    type: "button", class: "sound", "aria-pressed": "false",
    "aria-label": `Sound of ${label}, ${sample.key}`,
  }, "muted");
  sound.addEventListener("click", () => hear(video.muted ? video : null));
  return card(label, note, [video, sound], kind, tags);
};
const still = index => {
  const sample = board.samples[index], address = sample.files[STILL], inside = board.media[address];
  if (!address) return [];
  const src = inside ? `data:image/png;base64,${inside}` : address;
  const picture = make("img", { alt: `Still of the target scene, ${sample.key}`, loading: "lazy", src });
  picture.addEventListener("error", () => picture.replaceWith(gone(address)));
  return [card("Still", "as the model sees it", [picture], "input", [])];
};
const scoresTable = index => {
  const head = text => make("th", { scope: "col" }, make("span", {}, text));
  const line = metric => make("tr", {}, make("th", { scope: "row", title: metric.meaning }, metric.label),
    ...board.rows.map(row => make("td", {}, written(metric, scoreOf(row.slug, metric.key, index)))));
  return make("table", { class: "scores" },
    make("thead", {}, make("tr", {}, head("Metric"), ...board.rows.map(row => head(row.name)))),
    make("tbody", {}, ...board.metrics.map(line)));
};
const article = index => {
  const sample = board.samples[index], metric = metricOf.get(chosen.metric), tagged = tagsOf(index);
  const tags = row => tagged.filter(([of]) => of === row).map(([, tag]) => tag.replaceAll("_", " "));
  const score = row => metric ? `${metric.name} ${written(metric, scoreOf(row.slug, metric.key, index))}` : "";
  const reference = sample.kind ? `${sample.reference} (${sample.kind})` : sample.reference;
  const facts = [sample.person, `reference ${reference}`, `${sample.seconds.toFixed(1)} s`];
  const scores = make("details", {}, make("summary", {}, "Scores of all rows"));
  scores.addEventListener("toggle", () => {
    if (scores.children.length > 1) return;
    const about = { class: "scroll", tabindex: "0", role: "group", "aria-label": `Scores of ${sample.key}` };
    scores.append(make("div", about, scoresTable(index)));
  });
  const cards = shownRows().map(row =>
    player(index, `${row.slug}.mp4`, row.name, score(row), row.role || "model", tags(row)));
  const about = { class: "sample", "data-sample": String(index), "aria-label": `Sample ${sample.key}` };
  const made = make("article", about, make("h4", {}, sample.key),
    make("p", { class: "dim" }, facts.join(" \u00b7 ")), make("p", { class: "caption" }, sample.caption),
    make("div", { class: "cards" },
      player(index, REFERENCE, "Reference", "input", "input"), ...still(index), ...cards),
    scores);
  const [height, width] = sample.size;
  made.style.setProperty("--shape", `${width} / ${height}`);
  if (width > 150) made.classList.add("large");
  return made;
};

const list = () => {
  const found = matching(), [some, without] = ranked(found), how = byId("order").value;
  const metric = metricOf.get(chosen.metric), row = rowOf.get(byId("ranked-row").value);
  const by = metric && row ? `by ${metric.label} of ${row.name}` : "";
  const column = (title, indices) =>
    make("section", { class: "column", "aria-label": title }, make("h3", {}, title), ...indices.map(article));
  watcher.disconnect();
  [...loaded].forEach(unload);
  let columns, shown;
  if (how === "ends" && samplesOf.only === null && some.length > 1) {
    const each = Math.min(EACH, Math.floor(some.length / 2));
    columns = [column(`Worst ${by}`, some.slice(0, each)), column(`Best ${by}`, some.slice(-each).reverse())];
    shown = 2 * each;
    byId("more").hidden = true;
  } else {
    const order = how === "listed" ? found : [...(how === "best" ? some.reverse() : some), ...without];
    const title = samplesOf.only !== null ? "One sample" : how === "listed" ? "As listed"
      : `${how === "best" ? "Best" : "Worst"} first, ${by}`;
    shown = Math.min(order.length, samplesOf.length);
    columns = [column(title, order.slice(0, shown))];
    byId("more").hidden = shown === order.length;
  }
  byId("list").className = columns.length > 1 ? "ends" : "";
  byId("list").replaceChildren(...columns);
  byId("everything").hidden = samplesOf.only === null;
  byId("count").textContent =
    `${shown} of ${found.length} matching sample(s), ${board.samples.length} in all`;
  for (const made of document.querySelectorAll("#list .sample")) watcher.observe(made);
};

const people = [...new Set(board.samples.map(sample => sample.person))].sort();
const everyTag = [...new Set(board.samples.flatMap((_, index) => tagsOf(index).map(([, tag]) => tag)))].sort();
fill(byId("person"), [["", "everybody"], ...people.map(name => [`=${name}`, name])]);
fill(byId("failure"), [["", "any or none"], ["none", "none"], ["some", "some"],
  ...everyTag.map(tag => [`=${tag}`, tag.replaceAll("_", " ")])]);
fill(byId("ranked-row"), rowNames, board.leader);
byId("rows-shown").append(...board.rows.map(row => {
  const box = make("input", { type: "checkbox", value: row.slug });
  box.checked = row.slug === "truth" || models.slice(-4).includes(row);
  return make("label", { class: "check" }, box, ` ${row.name}`);
}));
const again = () => { Object.assign(samplesOf, { only: null, length: PAGE }); list(); };
for (const id of ["order", "person", "failure", "ranked-row", "rows-shown"]) {
  byId(id).addEventListener("change", again);
}
byId("more").addEventListener("click", () => { samplesOf.length += PAGE; list(); });
byId("everything").addEventListener("click", again);
byId("watch").addEventListener("click", () => {
  samplesOf.only = chosen.sample;
  list();
  byId("list").scrollIntoView({ block: "start" });
});
list();
showClock();
