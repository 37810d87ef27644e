// What stands behind the shading: curves, what the answer attends to, and the numbers.

const BOUNDS = { logprob: [null, 0], entropy: [0, null], waad: [0, null], fai: [0, null] };

const showBehind = (trace) => {
  const marks = curveMarks(trace);
  const curve = (title, y, series, note, bounds) => {
    const points = series.map(([name, values]) => ({ name, points: values.map((v, t) => [t, v]) }));
    return figure({ kind: "lines", title, note, x: "token", y, height: 160, marks, series: points, bounds });
  };
  const figures = [creditCurve(trace, curve)];
  for (const [name, label] of Object.entries(NAMES)) {
    if (trace.signals?.[name]) figures.push(curve(label, label, [[label, trace.signals[name]]], "", BOUNDS[name]));
  }
  if (trace.attention) figures.push(attentionPicture(trace));
  figures.push(endsTable(trace));
  document.getElementById("behind").replaceChildren(...figures);
};

const creditCurve = (trace, curve) => {
  const chosen = chosenMethods(trace);
  const byWeight = view.quantity === "weights" || !hasCredit(trace);
  const weighted = byWeight ? chosen.filter((name) => trace.credit[name].weights) : [];
  const shown = weighted.length ? weighted : chosen;
  const by = weighted.length ? "weight" : "advantage";
  const lacking = byWeight ? chosen.filter((name) => !trace.credit[name].weights) : [];
  const note = lacking.length ? `No weight: ${lacking.join(", ")}.` : "";
  const title = weighted.length ? "Weight over the trace" : "Advantage over the trace";
  return curve(
    title,
    by,
    shown.map((name) => [name, trace.credit[name][`${by}s`]]),
    note,
  );
};

const curveMarks = (trace) => {
  const marks = [];
  const thinks = tokenWith(trace, "<think>");
  if (thinks >= 0) marks.push({ at: thinks, name: "<think>", kind: "think" });
  if (trace.answer_start > 0) marks.push({ at: trace.answer_start - 0.5, name: visible(startOfAnswer(trace), 40), kind: "think" });
  if (known(trace.first_error)) marks.push({ at: trace.first_error, name: "first error", kind: "wrong" });
  return marks;
};

// What stands between reasoning and answer, of all that may stand there.
const startOfAnswer = (trace) => {
  const start = trace.answer_start ?? -1;
  const [before, near] = [trace.tokens.slice(0, Math.max(0, start)), trace.tokens.slice(Math.max(0, start - 1), start + 8)];
  const found = [before, near].flatMap((tokens) => page.delimiters.filter((text) => tokens.join("").includes(text)));
  return found[0] ?? "answer";
};

// The token in which a text begins, which may be spread over several; -1 where there is none.
const tokenWith = (trace, text) => {
  const at = trace.tokens.join("").indexOf(text);
  let end = 0;
  return at < 0 ? -1 : trace.tokens.findIndex((token) => (end += token.length) > at);
};

const attentionPicture = (trace) => {
  const { layer, rows, columns, values } = trace.attention;
  return figure({
    kind: "matrix",
    title: `What the answer attends to (layer ${layer}, mean of its heads)`,
    note: "Rows are answer tokens, columns the reasoning.",
    rows: rows.map((t) => `${t} ${shownToken(trace, t, 8).trim()}`),
    columns,
    values,
    x: "token",
  });
};

const endsTable = (trace) => {
  const middle = (trace.answer_start ?? -1) >= 0 ? `, around ${visible(startOfAnswer(trace), 40)}` : "";
  const title = `First ten${middle}, last ten`;
  const table = tokenTable(trace, endsOf(trace));
  // A row of dots where tokens are left out.
  const rows = table.rows.flatMap((row, i) =>
    i && row[0] > table.rows[i - 1][0] + 1 ? [["…", ...row.slice(1).map(() => "")], row] : [row],
  );
  return html(
    "figure",
    { class: "figure table ends" },
    html("figcaption", {}, html("strong", { text: title })),
    tableOf({ columns: table.columns, rows }, title),
    copyButton("Copy all tokens as CSV", () => csv(tokenTable(trace))),
  );
};

const tokenTable = (trace, positions = trace.tokens.map((_, t) => t)) => {
  const series = chosenMethods(trace).flatMap((name) => {
    const { weights, advantages } = trace.credit[name];
    return [...(weights ? [[`${name} weight`, weights]] : []), [`${name} advantage`, advantages]];
  });
  return {
    columns: ["position", "token", ...series.map(([name]) => name), "label"],
    rows: positions.map((t) => [
      t,
      shownToken(trace, t),
      ...series.map(([, values]) => values[t]),
      stepLabel(trace, t),
    ]),
  };
};

// The table of ATPO's paper.
const endsOf = (trace) => {
  const [n, a] = [lengthOf(trace), trace.answer_start ?? -1];
  const around = (t) => a >= 0 && t >= a - 5 && t < a + 5;
  return trace.tokens.map((_, t) => t).filter((t) => t < 10 || t >= n - 10 || around(t));
};
