// The table of episodes, and the dialog that shows one of them. What a model wrote becomes text nodes, and nothing else:
// DataTables reads strings as HTML, also those that it searches, so it gets numbers of rows and finished nodes.

const FACETS = {
  task: "Task", model: "Model", arm: "Arm", seed: "Seed", mode: "Mode", draw: "Draw", outcome: "Outcome",
  change: "Beside vanilla",
  attempt_error: "Error of the attempt", retry_error: "Error of the retry", variety: "Kind of reflection", shaded: "Shaded",
};
const SEARCHED = ["label", "problem_id", "attempt", "reflection", "retry"];
const KEY = ["task", "model", "arm", "seed", "mode", "draw", "problem_id"];
const PAIRED = ["task", "model", "mode", "draw", "problem_id"];
const LIMIT = 4000; // characters of a text that are shown at once
const MORE = 100000; // characters that a click adds at most
const $ = (id) => document.getElementById(id);
const number = (n) => n.toLocaleString("en");

function make(tag, props, ...children) {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children);
  return node;
}

// ── Data ──

async function unpack(text) {
  const packed = atob(text.trim());
  const bytes = new Uint8Array(packed.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = packed.charCodeAt(i);
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}

let data, table, keep, current = -1, chosen = null; // chosen: arm and seed of the other side, "" for none
const get = (name, i) => data.columns[name].values[data.columns[name].codes[i]] ?? null;
const code = (name, i) => data.columns[name].codes[i];
const several = (name) => data.columns[name].values.length > 1;
const trained = (i) => get("arm", i) !== "vanilla";
const who = (i) => (trained(i) || get("seed", i) ? `${get("arm", i)}, seed ${get("seed", i)}` : "vanilla");

// ── Text ──

const HIDDEN = /(?![\n\t])([\p{Cc}\p{Cf}\p{Cs}\p{Co}\u2028\u2029\u00a0\u034f\u115f\u1160\u3164\uffa0\ufe00-\ufe0f])\1*/gu;

const symbol = (char) => `U+${char.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;

// Control characters, directions, lone surrogates and what has no width are named in boxes, so that they do nothing.
function visible(text) {
  const out = new DocumentFragment();
  let from = 0;
  for (const m of text.matchAll(HIDDEN)) {
    const times = m[0].length / m[1].length;
    const name = symbol(m[1]) + (times > 1 ? `×${times}` : "");
    out.append(text.slice(from, m.index), make("span", { className: "char" }, name));
    from = m.index + m[0].length;
  }
  out.append(text.slice(from));
  return out;
}

const cut = (text, n) => (/[\ud800-\udbff]/.test(text[n - 1] ?? "") ? n + 1 : n); // not between the halves of a character

function shown(text, limit = LIMIT) {
  const end = text.length > 1.5 * limit ? cut(text, limit) : text.length;
  const block = make("pre", { dir: "auto" }, visible(text.slice(0, end)));
  return text.length > end ? [block, moreButton(block, text, end)] : [block];
}

function moreButton(block, text, from) {
  const button = make("button", { type: "button", className: "more" });
  const name = () => {
    const left = number(text.length - from);
    const next = text.length - from <= MORE ? "Show all:" : `Show ${number(MORE)} of`;
    button.textContent = `${next} ${left} more characters`;
  };
  button.onclick = () => {
    const to = cut(text, from + MORE);
    block.append(visible(text.slice(from, to)));
    from = to;
    if (from >= text.length) button.remove();
    else name();
  };
  name();
  return button;
}

const short = (text, n) => (text.length > n ? visible(text.slice(0, cut(text, n)) + " …") : visible(text));

// ── Filters ──

function facet(name) {
  const { values, codes } = data.columns[name];
  const counts = new Array(values.length).fill(0);
  for (const c of codes) if (c >= 0) counts[c]++;
  const select = make("select", { id: `by-${name}`, name }, make("option", { value: "" }, "all"));
  const option = (v, c) => make("option", { value: c }, short(String(v), 40), ` (${number(counts[c])})`);
  values.forEach((v, c) => v === "" || select.append(option(v, c)));
  return make("label", {}, FACETS[name], select);
}

function setUpFilters() {
  const names = Object.keys(FACETS).filter((n) => data.columns[n].values.filter((v) => v !== "").length > 1);
  const unit = counted() ? "tokens" : "characters";
  const field = (id, label) => make("label", {}, label, make("input", { type: "number", id, min: 0, inputMode: "numeric" }));
  const lengths = reflected() ? [field("least", `Reflection, at least (${unit})`), field("most", `at most (${unit})`)] : [];
  $("facets").append(...names.map(facet), ...lengths);
  $("more").open = innerWidth > 760;
  let timer;
  const later = () => { clearTimeout(timer); timer = setTimeout(update, 150); };
  $("filters").addEventListener("input", later);
  $("filters").addEventListener("reset", later);
  $("filters").addEventListener("submit", (e) => e.preventDefault());
}

const reflected = () => data.columns.reflection.values.length > 0;
const counted = () => data.columns.reflection_tokens.values.length > 0; // else a length is that of the text
const length = (i) => (counted() ? get("reflection_tokens", i) : get("reflection", i)?.length) ?? null;

// Words in any order, "a phrase" as it is, each of them anywhere in the texts of an episode; capitals do not count.
function wordFilters(query) {
  const words = [...query.toLowerCase().matchAll(/"([^"]+)"|[^\s"]+/g)].map((m) => m[1] ?? m[0]);
  const columns = SEARCHED.map((name) => data.columns[name]);
  for (const c of columns) if (words.length) c.lower ??= c.values.map((v) => String(v).toLowerCase());
  return words.map((word) => {
    const hits = columns.map((c) => c.lower.map((v) => v.includes(word)));
    return (i) => columns.some((c, k) => c.codes[i] >= 0 && hits[k][c.codes[i]]);
  });
}

function update() {
  const tests = wordFilters($("text").value);
  const chosen = [...$("facets").querySelectorAll("select, input")].filter((field) => field.value !== "");
  for (const { id, name, value } of chosen) {
    if (name) tests.push((i) => code(name, i) === +value);
    else tests.push((i) => length(i) !== null && (id === "least" ? length(i) >= +value : length(i) <= +value));
  }
  keep = Uint8Array.from({ length: data.rows }, (_, i) => tests.every((t) => t(i)));
  table.draw();
  count();
}

function count() {
  const { values, codes } = data.columns.outcome;
  const each = new Array(values.length).fill(0);
  let n = 0;
  for (let i = 0; i < data.rows; i++) if (keep[i]) { n++; each[codes[i]]++; }
  const ends = values.map((v, c) => `${number(each[c])} ${v}`).filter((_, c) => each[c]);
  const said = `${number(n)} of ${number(data.rows)} episodes: ${ends.join(", ")}`;
  $("count").textContent = n ? said : "No episode is like this: take a filter away.";
}

// ── Table ──

const SMALL = { className: "small" }; // not on a narrow screen
const COLUMNS = [
  ["label", "Problem", { cellType: "th" }], ["task", "Task", SMALL, true], ["model", "Model", SMALL, true], ["arm", "Arm", {}],
  ["seed", "Seed", { type: "num", ...SMALL }], ["mode", "Mode", SMALL, true], ["draw", "Draw", { type: "num", ...SMALL }, true],
  ["outcome", "Outcome", {}], ["change", "Beside vanilla", SMALL, true], ["attempt_error", "Error", SMALL, true],
  ["reflection", "Reflection", { className: "text" }], ["reflection_tokens", "Tokens", { type: "num", ...SMALL }],
  ["variety", "Kind", SMALL],
];
const OF_REFLECTIONS = ["reflection", "reflection_tokens", "variety"];

function cell(name, value) {
  if (value === null || value === "") return document.createTextNode(value === "" && name === "reflection" ? EMPTY : "–");
  if (name === "outcome") return outcome(value);
  return make("bdi", {}, short(String(value), name === "reflection" || name === "label" ? 120 : 40));
}

const outcome = (value) => make("span", { className: `outcome ${value.replaceAll(/[ ,]+/g, "-")}` }, value);

function setUpTable() {
  const there = ([name, , , optional]) => (OF_REFLECTIONS.includes(name) ? reflected() : !optional || several(name));
  const columns = COLUMNS.filter(there).map(([name, title, more]) => ({
    title, data: null, searchable: false, type: "string", ...more,
    render: (_, kind, [i]) => (kind === "display" ? cell(name, get(name, i)) : (get(name, i) ?? (more.type ? -1 : ""))),
  }));
  table = new DataTable("#episodes", {
    columns, data: Array.from({ length: data.rows }, (_, i) => [i]), order: [], autoWidth: false, deferRender: true,
    pageLength: 25, lengthMenu: [25, 50, 100], language: { emptyTable: "", zeroRecords: "" },
    layout: { topStart: null, topEnd: null, bottomStart: "pageLength", bottomEnd: "paging" },
    createdRow: (tr, [i]) => { tr.dataset.i = i; tr.tabIndex = -1; tr.cells[0].scope = "row"; },
    drawCallback: () => roving($("episodes").tBodies[0].querySelector("tr[data-i]")),
  });
  table.search.fixed("filters", (_, [i]) => keep[i] === 1);
  const body = $("episodes").tBodies[0];
  body.addEventListener("click", (e) => {
    const tr = e.target.closest("tr[data-i]");
    if (tr && getSelection().isCollapsed) go(+tr.dataset.i);
  });
  body.addEventListener("focusin", (e) => roving(e.target.closest("tr")));
  body.addEventListener("keydown", rowKey);
}

// The Tab key finds one row, the arrows the others.
function roving(row) {
  for (const tr of $("episodes").querySelectorAll("tr[tabindex='0']")) tr.tabIndex = -1;
  if (row) row.tabIndex = 0;
}

function rowKey(e) {
  const tr = e.target.closest("tr[data-i]");
  const step = { ArrowDown: 1, ArrowUp: -1 }[e.key];
  if (!tr || !(step || e.key === "Enter") || e.ctrlKey || e.altKey || e.metaKey) return;
  e.preventDefault();
  if (!step) return go(+tr.dataset.i);
  const list = order();
  const next = list[list.indexOf(+tr.dataset.i) + step];
  if (next !== undefined) focusRow(next);
}

const order = () => table.rows({ search: "applied", order: "applied" }).indexes().toArray(); // rows in the order of the table

function focusRow(i) {
  const at = order().indexOf(i);
  const page = Math.floor(at / table.page.len());
  if (at < 0) return $("text").focus();
  if (page !== table.page()) table.page(page).draw("page");
  table.row(i).node().focus();
}

// ── One episode ──

const encode = (v) => encodeURIComponent(String(v).replace(/\p{Cs}/gu, "\ufffd"));
const hash = (i) => "#" + KEY.map((k) => encode(get(k, i))).join("/");
const go = (i) => { location.hash = hash(i); };
const decode = (part) => { try { return decodeURIComponent(part); } catch { return part; } };
const same = (i, j) => PAIRED.every((k) => code(k, i) === code(k, j)); // the same problem, tried in the same way

function fromHash() {
  const wanted = location.hash;
  if (wanted.length < 2 || !wanted.includes("/")) return $("episode").close();
  const normal = "#" + wanted.slice(1).split("/").map((part) => encode(decode(part))).join("/");
  for (let i = 0; i < data.rows; i++) if (hash(i) === normal) return show(i);
  say(`This page has no episode ${wanted.slice(1, 200)}.`);
}

const EMPTY = "(empty text)";
const hint = (...parts) => make("p", { className: "hint" }, ...parts);
const ENDS = { // outcome: whether the attempt and the retry were right
  "right at once": { attempt: true }, repaired: { attempt: false, retry: true },
  "failed twice": { attempt: false, retry: false }, "failed, no retry": { attempt: false },
  right: { attempt: true }, wrong: { attempt: false }, // of a benchmark
};

function turn(role, title, text, { facts = [], limit = LIMIT, nodes = null } = {}) {
  const head = make("h4", {}, title, ...facts.filter(Boolean).map((f) => make("span", { className: "fact" }, f)));
  const body = text === null ? [hint("not stored")] : text === "" ? [hint(EMPTY)] : shown(text, limit);
  return make("div", { className: `turn ${role}` }, head, ...(nodes ?? body));
}

function facts(step, i) {
  const ok = ENDS[get("outcome", i)]?.[step], tokens = get(`${step}_tokens`, i);
  const verdict = ok === undefined ? "" : ok ? "right" : ["wrong", get(`${step}_error`, i)].filter(Boolean).join(": ");
  const full = get(`${step}_finish`, i) === "length" && "cut at the limit of tokens";
  return [verdict && short(verdict, 100), tokens !== null && `${tokens} token${tokens === 1 ? "" : "s"}`, full];
}

function shaded(i) {
  const pieces = data.pieces?.[i];
  if (!pieces) return null;
  const block = make("pre", { dir: "auto" });
  pieces.forEach((piece, k) => {
    const v = data.shades[i][k];
    const span = make("span", { title: v === null ? "no value" : v.toPrecision(3) }, visible(piece));
    if (v) span.className = v > 0 ? "up" : "down";
    span.style.setProperty("--share", `${Math.round(45 * Math.min(1, Math.abs(v) / data.top))}%`);
    block.append(span);
  });
  const key = (name, text) => make("span", { className: `${name} key` }, text);
  const full = `${data.shade}, full colour at ±${data.top.toPrecision(2)}: `;
  const legend = hint(full, key("up", "above zero"), " ", key("down", "below zero"));
  const list = pieces.map((p, k) => [visible(p), ` ${data.shades[i][k]?.toPrecision(3) ?? "–"}\n`]).flat();
  return [block, legend, make("details", {}, make("summary", {}, "Values of the tokens"), make("pre", {}, ...list))];
}

function talk(i, side) {
  const id = `side-${side}`;
  const out = make("section", { className: "talk" }, make("h3", { id }, short(who(i), 80), " ", outcome(get("outcome", i))));
  out.setAttribute("aria-labelledby", id);
  out.append(turn("model", reflected() ? "Attempt" : "Answer", get("attempt", i), { facts: facts("attempt", i) }));
  if (!reflected()) return out;
  if (get("reflection", i) === null && get("retry", i) === null) {
    out.append(hint("No reflection and no retry."));
    return out;
  }
  if (get("request", i) !== null) out.append(turn("user", "Request to reflect", get("request", i), { limit: 300 }));
  const about = [...facts("reflection", i), get("variety", i)];
  out.append(turn("model reflection", "Reflection", get("reflection", i), { facts: about, nodes: shaded(i) }));
  if (get("again", i) !== null) out.append(turn("user", "Request to retry", get("again", i), { limit: 200 }));
  out.append(turn("model", "Retry", get("retry", i), { facts: facts("retry", i) }));
  return out;
}

function partners(i) {
  const all = [];
  for (let j = 0; j < data.rows; j++) if (j !== i && same(i, j)) all.push(j);
  const wished = all.find((j) => who(j) === chosen) ?? all.find((j) => (trained(i) ? !trained(j) : trained(j)));
  const option = (j) => make("option", { value: j }, short(`${who(j)}: ${get("outcome", j)}`, 80));
  $("beside").replaceChildren(make("option", { value: "" }, "nothing"), ...all.map(option));
  $("beside").value = chosen === "" ? "" : (wished ?? "");
  $("beside").parentNode.hidden = !all.length;
  return $("beside").value === "" ? null : +$("beside").value;
}

function show(i) {
  current = i;
  const list = order(), at = list.indexOf(i), other = partners(i);
  const sides = other === null ? [i] : trained(i) && !trained(other) ? [other, i] : [i, other];
  const place = ["task", "model", "mode"].filter(several).map((name) => get(name, i));
  if (several("draw")) place.push(`draw ${get("draw", i)}`);
  place.push(at < 0 ? "not among those found" : `${number(at + 1)} of ${number(list.length)}`);
  $("which").replaceChildren(short(String(get("label", i)), 100), make("small", {}, visible(place.join(" · "))));
  const name = short(`problem ${get("problem_id", i)}`, 80);
  const question = turn("user", "Question", get("prompt", i) || null, { facts: [name], limit: 1200 });
  const both = make("div", { className: sides.length > 1 ? "sides two" : "sides" }, ...sides.map(talk));
  const missing = "What training did to each token is not stored here, so reflections are not shaded: r3-repro shades stores it.";
  const apart = "Only reflections with stored shades are coloured: filter by Shaded to find them.";
  const note = !reflected() || sides.some((s) => data.pieces?.[s]) ? [] : [hint(data.pieces ? apart : missing)];
  $("content").replaceChildren(make("section", { className: "question" }, make("h3", {}, "Problem"), question), both, ...note);
  $("before").disabled = at < 1;
  $("after").disabled = at < 0 || at + 1 >= list.length;
  $("link").href = hash(i);
  if (!$("episode").open) $("episode").showModal();
  $("episode").scrollTop = 0;
  $("which").focus();
}

function step(by) {
  const list = order(), next = list[list.indexOf(current) + by];
  if (next === undefined || !list.includes(current)) return;
  history.replaceState(null, "", hash(next));
  show(next);
}

function setUpDialog() {
  $("before").onclick = () => step(-1);
  $("after").onclick = () => step(1);
  $("close").onclick = () => $("episode").close();
  $("beside").onchange = () => {
    chosen = $("beside").value === "" ? "" : who(+$("beside").value);
    show(current);
    $("beside").focus();
  };
  $("episode").addEventListener("click", (e) => { if (e.target === $("episode")) $("episode").close(); });
  $("episode").addEventListener("keydown", (e) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[e.key];
    if (!by || e.target.closest("select") || e.ctrlKey || e.altKey || e.metaKey) return;
    e.preventDefault();
    step(by);
  });
  $("episode").addEventListener("close", () => {
    history.replaceState(null, "", "#");
    focusRow(current);
  });
  $("skip").onclick = (e) => {
    e.preventDefault();
    $("episodes").querySelector("tr[tabindex='0']")?.focus();
  };
  addEventListener("hashchange", fromHash);
}

function say(text) {
  $("problem").replaceChildren(visible(text));
  $("problem").hidden = false;
}

try {
  data = await unpack($("data").textContent);
  $("data").remove();
  keep = new Uint8Array(data.rows).fill(1);
  setUpFilters();
  setUpTable();
  setUpDialog();
  count();
  $("main").removeAttribute("aria-busy");
  performance.mark("usable");
  if (location.hash.length > 1) fromHash();
} catch (e) {
  say(`This page cannot be shown (${e}). It needs a browser of 2023 or later.`);
  throw e;
}
