// Which trace the page opens on, what else was written for the same problem, and why a trace has no credit.

const allZero = (values) => values.every((v) => v === 0);
const hasCredit = (trace) => Object.values(trace.credit).some((credit) => !allZero(credit.advantages));

const problemOf = (trace) => JSON.stringify([trace.source, trace.group, trace.prompt]);

// The completions of the same problem by the same policy, in the page's order.
const matesOf = (trace) => traces.map((_, i) => i).filter((i) => problemOf(traces[i]) === problemOf(trace));

// Half the sum of the differences between two methods' shares of a trace's credit, for the pair that differs most, even
// credit among them: 0 where all agree, 1 where they credit different tokens.
const disagreement = (trace) => {
  const even = trace.tokens.map(() => 1 / lengthOf(trace));
  const shares = Object.values(trace.credit).flatMap(({ advantages }) => {
    const total = advantages.reduce((sum, v) => sum + Math.abs(v), 0);
    return total ? [advantages.map((v) => Math.abs(v) / total)] : [];
  });
  const apart = (a, b) => a.reduce((sum, v, t) => sum + Math.abs(v - b[t]), 0) / 2;
  const all = [even, ...shares];
  return Math.max(...all.flatMap((a, i) => all.slice(i + 1).map((b) => apart(a, b))));
};

// Of the traces with credit, rather those whose pane tells tokens apart, and of these rather those with a right and a
// wrong completion of the problem; the one on which the methods disagree most. The first trace where none has credit.
const openingTrace = () => {
  const verdicts = new Map();
  for (const trace of traces.filter(hasCredit)) {
    const problem = problemOf(trace);
    verdicts.set(problem, (verdicts.get(problem) ?? new Set()).add(trace.correct));
  }
  const preferred = (found, fits) => {
    const fitting = found.filter((i) => fits(traces[i]));
    return fitting.length ? fitting : found;
  };
  const tells = (trace) => !constant(trace.credit[ownMethod(trace)].advantages);
  const isMixed = (trace) => [true, false].every((verdict) => verdicts.get(problemOf(trace))?.has(verdict));
  const all = traces.map((_, i) => i);
  let [opening, most] = [0, -1];
  for (const i of [hasCredit, tells, isMixed].reduce(preferred, all)) {
    const apart = disagreement(traces[i]);
    // What differs by rounding alone is the same.
    if (apart > most + 1e-9) [opening, most] = [i, apart];
  }
  return opening;
};

const showMates = (trace) => {
  const mates = matesOf(trace);
  const box = document.getElementById("mates");
  box.hidden = mates.length < 2;
  const button = (i) =>
    html("button", {
      type: "button",
      text: `${traces[i].number}${traces[i].correct === true ? " ✓" : traces[i].correct === false ? " ✗" : ""}`,
      "aria-label": `Trace ${traces[i].number}${verdict(traces[i]).slice(1)}`,
      "aria-current": traces[i] === trace ? "true" : null,
      click: () => choose(i),
    });
  box.replaceChildren("The same problem: ", ...mates.map(button));
};

// Why every advantage of a trace is 0, and what is shown instead.
const showWhy = (trace) => {
  const box = document.getElementById("why");
  box.hidden = hasCredit(trace);
  const same =
    trace.same_reward === 1
      ? "This is the only completion of its problem"
      : `All ${trace.same_reward} completions of this problem got the same reward, ${number(trace.reward)}`;
  const why = known(trace.same_reward)
    ? `${same}, so GRPO, which compares the completions of a problem, gives it no advantage: it is 0 on every token.`
    : "The advantage is 0 on every token of this completion.";
  const weighted = chosenMethods(trace).some((name) => shownBy(trace, name) === "weight");
  box.textContent = weighted ? `${why} The text is shaded by weight instead.` : why;
};
