// From the data to the page; the view in the address, so that a link leads back to it.

const remember = () => {
  const kept = new URLSearchParams();
  for (const [name, value] of Object.entries(view)) {
    const said = Array.isArray(value) ? value.map(encodeURIComponent).join(",") : String(value);
    if (said !== String(DEFAULTS[name])) kept.set(name, said);
  }
  // Not at once: some browsers refuse a hundred changes in a few seconds, as arrow keys make them.
  clearTimeout(remembering);
  remembering = setTimeout(() => history.replaceState(null, "", `#${kept}`), 100);
};
let remembering;

const recall = () => {
  const asked = new URLSearchParams(location.hash.slice(1));
  const whole = (name, most) => Math.max(0, Math.min(most, Math.trunc(Number(asked.get(name)) || 0)));
  Object.assign(view, structuredClone(DEFAULTS));
  if (asked.has("trace")) view.trace = whole("trace", traces.length - 1);
  view.token = whole("token", lengthOf(traces[view.trace]) - 1);
  view.quantity = asked.get("quantity") === "weights" ? "weights" : "advantages";
  view.kind = Object.hasOwn(KINDS, asked.get("kind")) ? asked.get("kind") : "all";
  view.sort = Object.hasOwn(SORTS, asked.get("sort")) ? asked.get("sort") : "order";
  view.source = sources().includes(asked.get("source")) ? asked.get("source") : "all";
  view.query = asked.get("query") ?? "";
  view.marks = asked.get("marks") === "true";
  const named = asked.get("methods");
  const all = new Set(traces.flatMap(methodsOf));
  view.methods =
    named === null
      ? [...DEFAULTS.methods]
      : named
          .split(",")
          .map(decoded)
          .filter((name) => all.has(name))
          .slice(0, MOST_PANES);
};

const decoded = (text) => {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
};

const sources = () => [...new Set(traces.map((trace) => trace.source).filter(known))];

const control = (name) => document.getElementById(`control-${name}`);

const syncControls = () => {
  for (const name of ["kind", "sort", "source", "query", "quantity"]) control(name).value = view[name];
  control("marks").checked = view.marks;
};

const bindControls = () => {
  control("source").append(...sources().map((name) => html("option", { value: name, text: visible(name) })));
  control("source").closest("label").hidden = sources().length < 2;
  for (const name of ["kind", "sort", "source", "query"]) {
    control(name).addEventListener("input", () => {
      view[name] = control(name).value;
      showList();
      const found = matching();
      if (found.length && !found.includes(view.trace)) choose(found[0]);
      say(`${found.length} of ${traces.length} traces`);
      remember();
    });
  }
  control("quantity").addEventListener("input", () => {
    view.quantity = control("quantity").value;
    showTrace();
    remember();
  });
  control("marks").addEventListener("input", () => {
    view.marks = control("marks").checked;
    document.getElementById("panes").classList.toggle("rhythm", view.marks);
    remember();
  });
  const actions = { previous: () => move(-1), next: () => move(1), svg: exportSvg, png: exportPng };
  for (const [name, act] of Object.entries(actions)) control(name).addEventListener("click", act);
};

// j and k, n and p: next and previous trace; m: the next method; /: search.
const onKey = (event) => {
  if (
    !control("keys").checked ||
    event.ctrlKey ||
    event.metaKey ||
    event.altKey ||
    /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)
  )
    return;
  const actions = {
    j: () => move(1),
    n: () => move(1),
    k: () => move(-1),
    p: () => move(-1),
    m: nextMethod,
    "/": () => control("query").focus(),
  };
  if (!Object.hasOwn(actions, event.key)) return;
  event.preventDefault();
  actions[event.key]();
};

const showGroups = () => {
  const nav = document.querySelector("nav ul");
  for (const group of page.groups) {
    const section = html(
      "section",
      { id: group.id, "aria-labelledby": `${group.id}-title` },
      html("h2", { id: `${group.id}-title`, text: group.title }),
    );
    if (group.note) section.append(html("p", { class: "quiet", text: group.note }));
    section.append(html("div", { class: "figures" }, ...group.figures.map(figure)));
    document.getElementById("groups").append(section);
    const link = html("a", { href: `#${group.id}`, text: group.title, click: (event) => jump(event, section) });
    const last = page.opens_with === "groups" && traces.length ? nav.lastElementChild : null;
    nav.insertBefore(html("li", {}, link), last);
  }
};

// The fragment belongs to the view, so links within the page scroll by hand.
const jump = (event, target) => {
  event.preventDefault();
  target.scrollIntoView();
  target.setAttribute("tabindex", "-1");
  target.focus({ preventScroll: true });
};

const start = async () => {
  page = await unpack();
  traces = page.traces;
  DEFAULTS.trace = traces.length ? openingTrace() : 0;
  const jumpTo = (link, id) =>
    document.querySelector(link).addEventListener("click", (event) => jump(event, document.getElementById(id)));
  jumpTo(".skip", traces.length ? page.opens_with : "groups");
  jumpTo("nav a", "traces");
  document.getElementById("json").addEventListener("click", exportJson);
  if (traces.length) {
    bindControls();
    const restore = () => {
      recall();
      syncControls();
      showList();
      scrollToListed();
      showTrace();
    };
    document.getElementById("traces").hidden = false;
    restore();
    addEventListener("hashchange", restore);
    addEventListener("keydown", onKey);
  } else {
    document.querySelector("nav li").remove();
  }
  showGroups();
  // A link to a trace leads to it, also where figures come first.
  if (traces.length && page.opens_with === "groups" && location.hash) document.getElementById("traces").scrollIntoView();
  document.body.dataset.ready = "true";
};

start().catch((error) => {
  const box = document.getElementById("failed");
  box.hidden = false;
  box.textContent = `This page could not be drawn: ${error.message}. It needs a browser of 2023 or later.`;
});
