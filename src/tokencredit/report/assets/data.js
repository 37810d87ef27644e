// The page's data, and small helpers. Whatever comes from the data is set as text, never as markup.

const create =
  (make) =>
  (tag, attributes = {}, ...children) => {
    const node = make(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") node.addEventListener(name, value);
      else if (name === "text") node.textContent = value;
      else if (value !== null && value !== undefined && value !== false)
        node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children);
    return node;
  };
const html = create((tag) => document.createElement(tag));
const svg = create((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));

const unpack = async () => {
  const packed = document.getElementById("payload").textContent;
  const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
};

// Everything that would not show, or would rearrange what shows, is spelt out: controls, zero-width and direction
// marks, odd spaces, fillers, lone surrogates. A mark that would sit on the token before gets a circle to sit on.
const SHOWN = { "\n": "⏎\n", "\t": "⇥", " ": " " };
const UNSEEN = /[\p{C}\p{Z}\p{Default_Ignorable_Code_Point}\u2800]/gu;
const LONGEST = 300;
const visible = (text, longest = LONGEST) => {
  if (text === "") return "∅";
  const kept = text.length > longest ? [...text.slice(0, 2 * longest)].slice(0, longest).join("") : text;
  const spelt = kept
    .replace(UNSEEN, (c) => SHOWN[c] ?? `⟨U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`)
    .replace(/^\p{M}/u, "◌$&");
  return kept.length === text.length ? spelt : `${spelt}… (${text.length.toLocaleString("en")} characters)`;
};

// Bytes of a character that a later token completes have a dot in their place.
const PART = "·";
const PART_TITLE = "part of the next character";
const isPart = (trace, t) => Boolean(trace.partial?.length) && partsOfCharacters(trace).has(t);
const shownToken = (trace, t, longest) => {
  const text = trace.tokens[t];
  if (!isPart(trace, t)) return visible(text, longest);
  return `${text === "" ? "" : visible(text, longest)}${PART}`;
};
const partsOfCharacters = (trace) => {
  if (!partial.has(trace)) partial.set(trace, new Set(trace.partial));
  return partial.get(trace);
};
const partial = new WeakMap();

const number = (value, digits = 3) => {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return (value || 0).toLocaleString("en");
  const size = Math.abs(value);
  return size < 0.001 || size >= 1e5 ? value.toExponential(2) : String(+value.toPrecision(digits + 1));
};
// A Gini or a share of the credit; weights are in float32, and what is smaller than their rounding is 0.
const share = (value) => number(Math.abs(value ?? 1) < 1e-6 ? 0 : value, 1);
const signed = (value) => (value > 0 ? `+${number(value)}` : number(value).replace(/^-/, "−"));

const csv = (table) => {
  // A leading =, +, - or @ would be a formula to a spreadsheet.
  const cell = (value) => {
    if (typeof value === "number") return String(value);
    const text = String(value ?? "");
    return `"${(/^[=+\-@\t\r]/.test(text) ? `'${text}` : text).replaceAll('"', '""')}"`;
  };
  return [table.columns, ...table.rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
};

const copy = async (text) => {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const area = html("textarea", { class: "offscreen" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
};

const copyButton = (label, text) =>
  html("button", {
    type: "button",
    class: "copy",
    text: label,
    click: async (event) => {
      const button = event.currentTarget;
      say((await copy(text())) ? `${label}: copied` : "The browser did not allow copying");
      button.focus();
    },
  });

const say = (text) => {
  document.getElementById("status").textContent = text;
};

const download = (name, blob) => {
  const link = html("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
};

const tableOf = ({ columns, rows }, caption) =>
  html(
    "div",
    { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    html(
      "table",
      {},
      html("caption", { class: "offscreen", text: caption }),
      html("thead", {}, html("tr", {}, ...columns.map((name) => html("th", { scope: "col", text: name })))),
      html(
        "tbody",
        {},
        ...rows.map((row) =>
          html(
            "tr",
            {},
            ...row.map((v, i) =>
              i
                ? html("td", { text: number(v) })
                : html("th", { scope: "row", text: typeof v === "number" ? number(v) : visible(String(v ?? "")) }),
            ),
          ),
        ),
      ),
    ),
  );
