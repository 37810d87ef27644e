// The chosen trace under up to three methods, beside the truth, and what is known of a token.

const LONG = 2000;
const LONGEST_LINE = 400;
const NAMES = { logprob: "log-prob", entropy: "entropy", waad: "WAAD", fai: "FAI" };
let panes = [];

// Where credit should be: on the essential steps of a right completion, on the first error of a wrong one.
const truthOf = (trace) => {
  if (trace.truth) return trace.truth;
  const { essential, first_error: error, step_index: step } = trace;
  if (trace.correct && essential?.some(known)) return step.map((k) => (k >= 0 && essential[k] ? 1 : 0));
  if (trace.correct === false && known(error)) return trace.tokens.map((_, t) => (t === error ? 1 : 0));
  return null;
};

const valuesOf = (trace, name) => {
  if (name === TRUTH) return trace.correct === false ? truthOf(trace).map((v) => -v) : truthOf(trace);
  return shownBy(trace, name) === "weight" ? trace.credit[name].weights : trace.credit[name].advantages;
};

// An additive method has no weight. Where every advantage is 0, a weight still tells where credit would go.
const shownBy = (trace, name) => {
  const { weights, advantages } = trace.credit[name] ?? {};
  return weights && (view.quantity === "weights" || allZero(advantages)) ? "weight" : "advantage";
};

const chosenMethods = (trace) => {
  const chosen = view.methods.filter((name) => Object.hasOwn(trace.credit, name));
  return chosen.length ? chosen : [ownMethod(trace)];
};

const showTrace = () => {
  const trace = traces[view.trace];
  const about = [`trace ${trace.number}`, trace.source, verdict(trace), `${lengthOf(trace)} tokens`];
  document.getElementById("prompt").textContent = visible(trace.prompt, Infinity);
  document.getElementById("about").textContent = about
    .filter(Boolean)
    .map((part) => visible(part))
    .join(" · ");
  const names = [...chosenMethods(trace), ...(truthOf(trace) ? [TRUTH] : [])];
  const drawn = panes.filter((pane) => pane.trace === trace);
  panes = names.map((name) => drawn.find((pane) => pane.name === name) ?? paneOf(trace, name));
  document.getElementById("panes").replaceChildren(...panes.map((pane) => pane.figure));
  const marks = marksOf(trace);
  for (const pane of panes) shade(pane, marks);
  document.getElementById("panes").classList.toggle("rhythm", view.marks);
  showMates(trace);
  showWhy(trace);
  showKey(trace);
  showMethodButtons(trace);
  showBehind(trace);
  showToken(view.token);
  reveal();
};

const showKey = (trace) => {
  const shades = new Set(chosenMethods(trace).map((name) => shownBy(trace, name)));
  for (const by of ["advantage", "weight"]) document.getElementById(`key-${by}`).hidden = !shades.has(by);
};

let drawnPanes = 0;
const paneOf = (trace, name) => {
  const id = `pane${(drawnPanes += 1)}`;
  const body = html("div", {
    class: lengthOf(trace) > LONG ? "tokens long" : "tokens",
    dir: "ltr",
    tabindex: "0",
    role: "listbox",
    "aria-label": `Tokens under ${name}; arrow keys go from one to the next`,
    pointerover: (event) => onToken(event, showToken),
    click: (event) => onToken(event, pin),
    keydown: walk,
  });
  const spans = linesInto(body, trace, id);
  const note = html("small");
  const caption = html("figcaption", {}, html("strong", { text: name }), " ", note);
  const figure = html("figure", { class: name === TRUTH ? "pane truth" : "pane" }, caption, body);
  return { id, trace, name, spans, body, note, figure };
};

// A line of text a block, so that the browser may leave out those that are not in sight; one that never ends is broken.
const linesInto = (body, trace, id) => {
  let line = html("div", { class: "line" });
  const spans = trace.tokens.map((token, i) => {
    const span = document.createElement("span");
    span.id = `${id}-${i}`;
    span.dataset.i = i;
    span.setAttribute("role", "option");
    span.textContent = shownToken(trace, i);
    if (isPart(trace, i)) span.title = PART_TITLE;
    line.append(span);
    const broken = lengthOf(trace) > LONG && line.childElementCount >= LONGEST_LINE;
    if (token.endsWith("\n") || broken) {
      body.append(line);
      if (!token.endsWith("\n")) line.classList.add("broken");
      line = html("div", { class: "line" });
    }
    return span;
  });
  body.append(line);
  return spans;
};

const onToken = (event, act) => {
  if (event.target.dataset.i !== undefined) act(Number(event.target.dataset.i));
};

// Classes, not styles: thousands of tokens are shaded anew in one pass.
const shade = ({ trace, name, spans, note }, marks) => {
  const values = valuesOf(trace, name);
  const by = shownBy(trace, name);
  const [least, most] = extent(values);
  const largest = values.reduce((most, v) => Math.max(most, Math.abs(v)), 1e-12);
  const sequential = name !== TRUTH && by === "weight";
  const varies = sequential && !constant(values);
  const level = (v) => Math.round(varies ? (10 * (v - least)) / (most - least) : (10 * Math.abs(v)) / largest);
  spans.forEach((token, t) => {
    token.className = `t ${sequential ? "w" : values[t] < 0 ? "n" : "p"}${level(values[t])} ${marks[t]}`;
  });
  note.textContent = name === TRUTH ? truthNote(trace) : creditNote(trace, name, varies ? [least, most] : [largest]);
};

const creditNote = (trace, name, range) => {
  const { gini, effective_ratio: ratio } = trace.credit[name].diagnostics;
  const by = shownBy(trace, name);
  const values = valuesOf(trace, name);
  const told =
    range.length > 1
      ? `${by}, ${number(range[0])} to ${number(range[1])}`
      : values.length && constant(values)
        ? `${by} ${number(values[0])} on every token`
        : `${by}, at most ${number(range[0])}`;
  return `${told} · Gini ${share(gini)} · effective ratio ${share(ratio)}`;
};

const truthNote = (trace) => {
  if (trace.correct === false) return "where it first goes wrong";
  const unknown = trace.essential?.some((label) => label === null) && !trace.truth;
  return `the steps that the answer rests on${unknown ? "; some have no label" : ""}`;
};

const marksOf = (trace) => {
  const step = trace.step_index;
  const of = trace.tokens.map((_, t) => {
    const k = step ? step[t] : -1;
    const marks = [];
    if (k >= 0 && (t === 0 || step[t - 1] !== k)) marks.push("starts");
    if (k >= 0 && trace.essential?.[k]) marks.push("essential");
    if (t === trace.first_error) marks.push("error");
    if (t === trace.answer_start) marks.push("answer");
    return marks;
  });
  for (const name of ["preplan", "anchor"]) for (const t of trace.peaks?.[name] ?? []) of[t].push(name);
  return of.map((marks) => marks.join(" "));
};

const showMethodButtons = (trace) => {
  const chosen = chosenMethods(trace);
  const buttons = methodsOf(trace).map((name) =>
    html("button", {
      type: "button",
      "aria-pressed": String(chosen.includes(name)),
      text: name,
      click: () => toggle(name),
    }),
  );
  document.getElementById("methods").replaceChildren(...buttons);
};

const toggle = (name) => {
  const trace = traces[view.trace];
  const chosen = chosenMethods(trace);
  showMethods(chosen.includes(name) ? chosen.filter((m) => m !== name) : [...chosen, name].slice(-MOST_PANES));
  document.getElementById("methods").children[methodsOf(trace).indexOf(name)].focus();
};

const nextMethod = () => {
  const names = methodsOf(traces[view.trace]);
  const [first] = chosenMethods(traces[view.trace]);
  showMethods([names[(names.indexOf(first) + 1) % names.length]]);
  say(view.methods[0]);
};

const showMethods = (names) => {
  view.methods = names;
  if (view.sort === "gini") showList();
  showTrace();
  remember();
};

const stepLabel = (trace, t) => {
  const k = trace.step_index ? trace.step_index[t] : -1;
  if (t === trace.first_error) return "first error";
  if (k >= 0 && trace.essential && k in trace.essential) {
    return trace.essential[k] === null ? "no label" : trace.essential[k] ? "essential" : "redundant";
  }
  return trace.answer_start >= 0 && t >= trace.answer_start ? "answer" : "";
};

const factsOf = (trace, t) => {
  const facts = [
    ["position", String(t)],
    ["token", shownToken(trace, t)],
  ];
  for (const name of chosenMethods(trace)) {
    const { weights, advantages } = trace.credit[name];
    if (weights) facts.push([`${name}: weight`, number(weights[t])]);
    facts.push([`${name}: advantage`, signed(advantages[t])]);
  }
  for (const [name, label] of Object.entries(NAMES)) {
    if (trace.signals?.[name]) facts.push([label, number(trace.signals[name][t])]);
  }
  if (trace.advantage) facts.push(["Monte-Carlo advantage", signed(trace.advantage[t])]);
  const k = trace.step_index ? trace.step_index[t] : -1;
  if (k >= 0) facts.push(["step", String(k)]);
  const peaks = ["preplan", "anchor"].filter((name) => trace.peaks?.[name]?.includes(t));
  const label = [stepLabel(trace, t), isPart(trace, t) && PART_TITLE, ...peaks].filter(Boolean).join(", ");
  if (label) facts.push(["label", label]);
  return facts;
};

const showToken = (t) => {
  const trace = traces[view.trace];
  if (!lengthOf(trace)) return;
  for (const { id, spans, body } of panes) {
    spans[view.token]?.classList.remove("current");
    spans[view.token]?.removeAttribute("aria-selected");
    spans[t].classList.add("current");
    spans[t].setAttribute("aria-selected", "true");
    body.setAttribute("aria-activedescendant", `${id}-${t}`);
  }
  view.token = t;
  const told = factsOf(trace, t).flatMap(([name, value]) => [html("dt", { text: name }), html("dd", { text: value })]);
  document.getElementById("token").replaceChildren(...told);
};

const pin = (t) => {
  showToken(t);
  const facts = factsOf(traces[view.trace], t);
  say(facts.map(([name, value]) => `${name} ${value}`).join(", "));
  remember();
};

const walk = (event) => {
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity }[event.key];
  if (by === undefined) return;
  event.preventDefault();
  pin(Math.max(0, Math.min(lengthOf(traces[view.trace]) - 1, view.token + by)));
  reveal();
};

// Every pane scrolls to the token within its own box; the page stays where it is.
const reveal = () => {
  for (const { spans, body } of panes) {
    const span = spans[view.token];
    if (!span) continue;
    // Twice: lines out of sight have only a guessed height until they are near.
    for (let round = 0; round < 2; round += 1) {
      const [box, at] = [body.getBoundingClientRect(), span.getBoundingClientRect()];
      if (at.top < box.top || at.bottom > box.bottom) body.scrollTop += at.top - box.top - box.height / 2;
    }
  }
};
