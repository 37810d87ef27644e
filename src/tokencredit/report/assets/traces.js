// The traces: a list to choose from, the chosen one under up to three methods, and what is known of a token.

const MOST_PANES = 3;
const LONG = 2000;
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
let page;
let traces = [];
let panes = [];

const methodsOf = (trace) => Object.keys(trace.credit);
const lengthOf = (trace) => trace.tokens.length;
const giniOf = (trace) => {
  const name = view.methods.find((m) => Object.hasOwn(trace.credit, m)) ?? ownMethod(trace);
  return trace.credit[name].diagnostics.gini ?? 0;
};
const textOf = (trace) => (trace.text ??= `${trace.prompt}${trace.tokens.join("")}`.toLowerCase());

// Where credit should be: on the essential steps of a right completion, on the first error of a wrong one.
const truthOf = (trace) => {
  if (trace.truth) return trace.truth;
  const { essential, first_error: error, step_index: step } = trace;
  if (trace.correct && essential?.some((label) => label !== null))
    return step.map((k) => (k >= 0 && essential[k] ? 1 : 0));
  if (trace.correct === false && error !== null && error !== undefined)
    return trace.tokens.map((_, t) => (t === error ? -1 : 0));
  return null;
};

const valuesOf = (trace, name) => {
  if (name === TRUTH) return trace.correct === false ? truthOf(trace).map((v) => -Math.abs(v)) : truthOf(trace);
  const credit = trace.credit[name];
  return (view.quantity === "weights" && credit.weights) || credit.advantages;
};

const SORTS = {
  order: () => 0,
  reward: (a, b) => (b.reward ?? 0) - (a.reward ?? 0),
  length: (a, b) => lengthOf(b) - lengthOf(a),
  gini: (a, b) => giniOf(b) - giniOf(a),
};
const KINDS = { all: () => true, correct: (t) => t.correct === true, wrong: (t) => t.correct === false };

const matching = () => {
  const query = view.query.toLowerCase();
  return traces
    .map((_, i) => i)
    .filter(
      (i) =>
        KINDS[view.kind](traces[i]) &&
        (view.source === "all" || traces[i].source === view.source) &&
        (!query || textOf(traces[i]).includes(query)),
    )
    .sort((a, b) => SORTS[view.sort](traces[a], traces[b]) || a - b);
};

const verdict = (trace) => (trace.correct === true ? "✓ correct" : trace.correct === false ? "✗ wrong" : "");

const showList = () => {
  const found = matching();
  const list = document.getElementById("list");
  list.replaceChildren(
    ...found.map((i) => {
      const trace = traces[i];
      const about = [verdict(trace), `${lengthOf(trace)} tokens`];
      if (view.sort === "gini") about.push(`Gini ${number(giniOf(trace), 1)}`);
      if (trace.reward !== null && trace.reward !== undefined) about.splice(1, 0, `reward ${number(trace.reward)}`);
      return html(
        "li",
        {},
        html(
          "button",
          { type: "button", "data-trace": i, "aria-current": i === view.trace ? "true" : null, click: () => choose(i) },
          html("b", { text: `${i + 1} ${visible(trace.source ?? "")}` }),
          html("span", { text: visible(trace.prompt).slice(0, 120) }),
          html("small", { text: about.filter(Boolean).join(" · ") }),
        ),
      );
    }),
  );
  document.getElementById("count").textContent = `${found.length} of ${traces.length}`;
};

const choose = (i) => {
  view.trace = i;
  view.token = Math.min(view.token, lengthOf(traces[i]) - 1);
  for (const button of document.querySelectorAll("#list button")) {
    const current = Number(button.dataset.trace) === i;
    button.toggleAttribute("aria-current", current);
    if (current) {
      button.setAttribute("aria-current", "true");
      button.scrollIntoView({ block: "nearest" });
    }
  }
  showTrace();
  remember();
};

const move = (by) => {
  const found = matching();
  if (!found.length) return;
  const at = found.indexOf(view.trace);
  choose(found[at < 0 ? 0 : Math.min(found.length - 1, Math.max(0, at + by))]);
};

// Of a policy that a method trained, that method; else the first that tells tokens apart.
const ownMethod = (trace) => {
  const names = methodsOf(trace);
  return (
    names.find((name) => name === trace.source) ??
    names.find((name) => !constant(trace.credit[name].advantages)) ??
    names[0]
  );
};
const constant = (values) => values.every((v) => v === values[0]);

const shownMethods = (trace) => {
  const known = view.methods.filter((name) => Object.hasOwn(trace.credit, name));
  const chosen = known.length ? known : [ownMethod(trace)];
  return [...chosen, ...(truthOf(trace) ? [TRUTH] : [])];
};

const showTrace = () => {
  const trace = traces[view.trace];
  document.getElementById("prompt").textContent = visible(trace.prompt);
  document.getElementById("about").textContent = [
    `trace ${view.trace + 1}`,
    trace.source,
    verdict(trace),
    `${lengthOf(trace)} tokens`,
  ]
    .filter(Boolean)
    .map(visible)
    .join(" · ");
  panes = shownMethods(trace).map((name) => paneOf(trace, name));
  document.getElementById("panes").replaceChildren(...panes.map((pane) => pane.figure));
  panes.forEach((pane) => shade(trace, pane));
  document.getElementById("panes").classList.toggle("rhythm", view.marks);
  showMethodButtons(trace);
  showBehind(trace);
  showToken(view.token, { announce: false });
};

const paneOf = (trace, name) => {
  const body = html("div", {
    class: lengthOf(trace) > LONG ? "tokens long" : "tokens",
    dir: "ltr",
    tabindex: "0",
    role: "group",
    "aria-label": `Completion under ${name}; left and right arrow keys go from token to token`,
    pointerover: (event) =>
      event.target.dataset.i !== undefined && showToken(Number(event.target.dataset.i), { announce: false }),
    click: (event) => event.target.dataset.i !== undefined && pin(Number(event.target.dataset.i)),
    keydown: walk,
  });
  let line = html("div", { class: "line" });
  const spans = trace.tokens.map((token, i) => {
    const span = document.createElement("span");
    span.dataset.i = i;
    span.textContent = visible(token);
    line.append(span);
    if (token.endsWith("\n")) {
      body.append(line);
      line = html("div", { class: "line" });
    }
    return span;
  });
  body.append(line);
  const scaleNote = html("small");
  return {
    name,
    spans,
    body,
    scaleNote,
    figure: html(
      "figure",
      { class: name === TRUTH ? "pane truth" : "pane" },
      html("figcaption", {}, html("strong", { text: name }), " ", scaleNote),
      body,
    ),
  };
};

// Classes, not styles: a page of thousands of tokens is shaded anew in one pass.
const shade = (trace, pane) => {
  const values = valuesOf(trace, pane.name);
  const marks = marksOf(trace);
  const sequential = pane.name !== TRUTH && view.quantity === "weights" && trace.credit[pane.name].weights;
  const [least, most] = values.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
  const largest = Math.max(1e-12, Math.abs(least), Math.abs(most));
  const [from, span] = sequential && most > least ? [least, most - least] : [0, largest];
  pane.spans.forEach((token, t) => {
    const level = Math.round((10 * (sequential ? values[t] - from : Math.abs(values[t]))) / span);
    const tone = sequential ? "w" : values[t] < 0 ? "n" : "p";
    token.className = `t ${tone}${level} ${marks[t]}`;
  });
  const diagnostics = trace.credit[pane.name]?.diagnostics;
  pane.scaleNote.textContent =
    pane.name === TRUTH
      ? trace.correct === false
        ? "where it first goes wrong"
        : "the steps that the answer rests on"
      : `${sequential ? `weight, ${number(from)} to ${number(most)}` : `advantage, darkest ${number(largest)}`}${diagnostics ? ` · Gini ${number(diagnostics.gini, 1)} · effective ratio ${number(diagnostics.effective_ratio, 1)}` : ""}`;
};

const marksOf = (trace) => {
  const step = trace.step_index;
  const of = trace.tokens.map((_, t) => {
    const k = step ? step[t] : -1;
    const starts = k >= 0 && (t === 0 || step[t - 1] !== k);
    return `${starts ? "starts " : ""}${k >= 0 && trace.essential?.[k] ? "essential " : ""}${t === trace.first_error ? "error " : ""}${t === trace.answer_start ? "answer " : ""}`;
  });
  for (const [name, positions] of Object.entries(trace.peaks ?? {}))
    for (const t of positions) of[t] += `${name === "anchor" ? "anchor" : "preplan"} `;
  return of;
};

const showMethodButtons = (trace) => {
  const shown = shownMethods(trace);
  document
    .getElementById("methods")
    .replaceChildren(
      ...methodsOf(trace).map((name) =>
        html("button", {
          type: "button",
          "aria-pressed": String(shown.includes(name)),
          text: name,
          click: () => toggle(name),
        }),
      ),
    );
};

const toggle = (name) => {
  const shown = shownMethods(traces[view.trace]).filter((m) => m !== TRUTH);
  view.methods = shown.includes(name) ? shown.filter((m) => m !== name) : [...shown, name].slice(-MOST_PANES);
  showTrace();
  document.querySelector(`#methods button:nth-child(${methodsOf(traces[view.trace]).indexOf(name) + 1})`).focus();
  remember();
};

const NAMES = { logprob: "log-prob", entropy: "entropy", waad: "WAAD", fai: "FAI" };

const stepLabel = (trace, t) => {
  const k = trace.step_index ? trace.step_index[t] : -1;
  if (t === trace.first_error) return "first error";
  if (k >= 0)
    return trace.essential && k in trace.essential
      ? { true: "essential", false: "redundant", null: "no label" }[trace.essential[k]]
      : "";
  return trace.answer_start >= 0 && t >= trace.answer_start ? "answer" : "";
};

const factsOf = (trace, t) => {
  const facts = [
    ["position", t],
    ["token", visible(trace.tokens[t])],
  ];
  for (const name of shownMethods(trace)) {
    if (name === TRUTH) continue;
    const { weights, advantages } = trace.credit[name];
    if (weights) facts.push([`${name}: weight`, number(weights[t])]);
    facts.push([`${name}: advantage`, signed(advantages[t])]);
  }
  for (const [name, label] of Object.entries(NAMES))
    if (trace.signals?.[name]) facts.push([label, number(trace.signals[name][t])]);
  if (trace.advantage) facts.push(["Monte-Carlo advantage", signed(trace.advantage[t])]);
  const k = trace.step_index ? trace.step_index[t] : -1;
  if (k >= 0) facts.push(["step", k]);
  const peaks = Object.entries(trace.peaks ?? {})
    .filter(([, at]) => at.includes(t))
    .map(([name]) => name);
  const label = [stepLabel(trace, t), ...peaks].filter(Boolean).join(", ");
  if (label) facts.push(["label", label]);
  return facts;
};

const showToken = (t, { announce }) => {
  const trace = traces[view.trace];
  if (!lengthOf(trace)) return;
  for (const pane of panes) {
    pane.spans[view.token]?.classList.remove("current");
    pane.spans[t].classList.add("current");
  }
  view.token = t;
  const facts = factsOf(trace, t);
  document
    .getElementById("token")
    .replaceChildren(...facts.flatMap(([name, value]) => [html("dt", { text: name }), html("dd", { text: value })]));
  if (announce) say(facts.map(([name, value]) => `${name} ${value}`).join(", "));
};

const pin = (t) => {
  showToken(t, { announce: true });
  remember();
};

const walk = (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
  if (by === undefined) return;
  event.preventDefault();
  const t = Math.max(0, Math.min(lengthOf(traces[view.trace]) - 1, view.token + by));
  pin(t);
  panes[0].spans[t].scrollIntoView({ block: "nearest" });
};

// What stands behind the shading: curves, the attention picture, and the numbers.
const showBehind = (trace) => {
  const behind = document.getElementById("behind");
  const marks = [];
  trace.tokens.forEach(
    (token, t) => token.includes("<think>") && marks.push({ at: t, name: "<think>", kind: "think" }),
  );
  if (trace.answer_start > 0) marks.push({ at: trace.answer_start - 0.5, name: "</think>", kind: "think" });
  if (typeof trace.first_error === "number") marks.push({ at: trace.first_error, name: "first error", kind: "wrong" });
  const curve = (title, y, series, extra = {}) =>
    figure({
      kind: "lines",
      title,
      x: "token",
      y,
      height: 150,
      marks,
      series: series.map(([name, values]) => ({ name, points: values.map((v, t) => [t, v]) })),
      ...extra,
    });
  const shown = shownMethods(trace).filter((name) => name !== TRUTH);
  const figures = [
    curve(
      view.quantity === "weights" ? "Weight over the trace" : "Advantage over the trace",
      view.quantity.replace(/s$/, ""),
      shown.map((name) => [name, valuesOf(trace, name)]),
    ),
  ];
  for (const [name, label] of Object.entries(NAMES))
    if (trace.signals?.[name]) figures.push(curve(label, label, [[label, trace.signals[name]]]));
  if (trace.attention) {
    const { layer, rows, columns, values } = trace.attention;
    figures.push(
      figure({
        kind: "matrix",
        title: `What the answer attends to (layer ${layer}, mean of its heads)`,
        note: "Rows are answer tokens, columns the reasoning.",
        rows: rows.map((t) => `${t} ${visible(trace.tokens[t]).trim().slice(0, 8)}`),
        columns,
        values,
        x: "token",
      }),
    );
  }
  const few = tokenTable(trace, endsOf(trace));
  figures.push(
    html(
      "figure",
      { class: "figure table" },
      html("figcaption", {}, html("strong", { text: "First ten, around </think>, last ten" })),
      tableOf(few, "Tokens with their credit"),
      copyButton("Copy all tokens as CSV", () => csv(tokenTable(trace))),
    ),
  );
  behind.replaceChildren(...figures);
};

const tokenTable = (trace, positions = trace.tokens.map((_, t) => t)) => {
  const shown = shownMethods(trace).filter((name) => name !== TRUTH);
  const series = shown.flatMap((name) => [
    ...(trace.credit[name].weights ? [[`${name} weight`, trace.credit[name].weights]] : []),
    [`${name} advantage`, trace.credit[name].advantages],
  ]);
  return {
    columns: ["position", "token", ...series.map(([name]) => name), "label"],
    rows: positions.map((t) => [
      t,
      visible(trace.tokens[t]),
      ...series.map(([, values]) => values[t]),
      stepLabel(trace, t),
    ]),
  };
};

// The table of ATPO's paper.
const endsOf = (trace) => {
  const n = lengthOf(trace);
  const a = trace.answer_start ?? -1;
  const wanted = trace.tokens
    .map((_, t) => t)
    .filter((t) => t < 10 || t >= n - 10 || (a >= 0 && Math.abs(t - a + 0.5) < 5.5));
  return wanted;
};
