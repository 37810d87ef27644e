// What is looked at, and the list of traces to choose from.

const MOST_PANES = 3;
const TRUTH = "ground truth";
const view = {
  trace: 0,
  methods: [],
  quantity: "advantages",
  token: 0,
  kind: "all",
  source: "all",
  sort: "order",
  query: "",
  marks: false,
};
const DEFAULTS = { ...view };
const searched = new WeakMap();
let page;
let traces = [];

const methodsOf = (trace) => Object.keys(trace.credit);
const lengthOf = (trace) => trace.tokens.length;
const constant = (values) => values.every((v) => v === values[0]);
const known = (value) => value !== null && value !== undefined;

// Of a policy that a method trained, that method; else the first that tells tokens apart.
const ownMethod = (trace) => {
  const names = methodsOf(trace);
  const tells = (name) => !constant(trace.credit[name].advantages);
  return names.find((name) => name === trace.source) ?? names.find(tells) ?? names[0];
};

const giniOf = (trace) => {
  const name = view.methods.find((m) => Object.hasOwn(trace.credit, m)) ?? ownMethod(trace);
  return trace.credit[name].diagnostics.gini;
};

const textOf = (trace) => {
  if (!searched.has(trace)) searched.set(trace, `${trace.prompt}${trace.tokens.join("")}`.toLowerCase());
  return searched.get(trace);
};

// The largest first; what is not known last.
const falling = (value) => (a, b) => {
  const [x, y] = [value(a), value(b)];
  return known(x) && known(y) ? y - x : known(y) - known(x);
};
const SORTS = {
  order: () => 0,
  reward: falling((trace) => trace.reward),
  length: falling(lengthOf),
  gini: falling(giniOf),
};
const KINDS = { all: () => true, correct: (t) => t.correct === true, wrong: (t) => t.correct === false };

const matching = () => {
  const query = view.query.toLowerCase();
  const fits = (trace) =>
    KINDS[view.kind](trace) &&
    (view.source === "all" || trace.source === view.source) &&
    (!query || textOf(trace).includes(query));
  const indices = traces.map((_, i) => i).filter((i) => fits(traces[i]));
  return indices.sort((a, b) => SORTS[view.sort](traces[a], traces[b]) || a - b);
};

const verdict = (trace) => (trace.correct === true ? "✓ correct" : trace.correct === false ? "✗ wrong" : "");

const showList = () => {
  const found = matching();
  const items = found.map((i) => html("li", {}, listed(i)));
  document
    .getElementById("list")
    .replaceChildren(...(items.length ? items : [html("li", { class: "quiet", text: "No trace is like that." })]));
  document.getElementById("count").textContent = `${found.length} of ${traces.length}`;
};

const listed = (i) => {
  const trace = traces[i];
  const about = [verdict(trace), known(trace.reward) && `reward ${number(trace.reward)}`, `${lengthOf(trace)} tokens`];
  if (view.sort === "gini") about.push(`Gini ${share(giniOf(trace))}`);
  return html(
    "button",
    { type: "button", "data-trace": i, "aria-current": i === view.trace ? "true" : null, click: () => choose(i) },
    html("b", { text: known(trace.source) ? `${trace.number} ${visible(trace.source)}` : String(trace.number) }),
    html("span", { text: visible(trace.headline ?? trace.prompt, 120) }),
    html("small", { text: about.filter(Boolean).join(" · ") }),
  );
};

const choose = (i) => {
  view.trace = i;
  view.token = Math.max(0, Math.min(view.token, lengthOf(traces[i]) - 1));
  for (const button of document.querySelectorAll("#list button")) {
    const current = Number(button.dataset.trace) === i;
    if (current) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
  scrollToListed();
  showTrace();
  remember();
};

// Within the list's own box; the page stays where it is.
const scrollToListed = () => {
  const [list, current] = [document.getElementById("list"), document.querySelector("#list [aria-current]")];
  if (!current) return;
  const [box, at] = [list.getBoundingClientRect(), current.getBoundingClientRect()];
  if (at.top < box.top) list.scrollTop += at.top - box.top;
  else if (at.bottom > box.bottom) list.scrollTop += at.bottom - box.bottom;
};

const move = (by) => {
  const found = matching();
  if (!found.length) return;
  const at = found.indexOf(view.trace);
  choose(found[at < 0 ? 0 : Math.min(found.length - 1, Math.max(0, at + by))]);
};
