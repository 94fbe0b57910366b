"use strict";
// The numbers of the page and their text. They are those of fedjax_het/report: units.py, metric.py,
// results.py and tables.py; a test compares them.
const Numbers = (() => {
  const TIME = [[172800, 86400, "d"], [7200, 3600, "h"], [120, 60, "min"], [0.1, 1, "s"],
    [1e-4, 1e-3, "ms"], [0, 1e-6, "µs"]];
  const SMALL = [[0.1, 1, ""], [1e-4, 1e-3, "m"], [0, 1e-6, "µ"]];
  const PREFIXES = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [0, ""]];

  // Text with so many decimals; a tie goes to the even digit, as in Python.
  function fixed(value, places) {
    const text = value.toFixed(places);
    const exact = value.toFixed(Math.min(places + 30, 100));
    const tail = exact.slice(exact.indexOf(".") + 1 + places);
    if (!/^50*$/.test(tail)) return text;
    const cut = exact.slice(0, exact.length - tail.length).replace(/\.$/, "");
    return "02468".includes(cut.slice(-1)) ? cut : text;
  }

  // Text with so many significant digits and without needless zeros, as Python's "g".
  function general(value, digits) {
    if (value === 0) return "0";
    const [mantissa, exponent] = value.toExponential(digits - 1).split("e");
    const power = Number(exponent);
    if (power >= -4 && power < digits) return String(Number(value.toPrecision(digits)));
    const sign = power < 0 ? "-" : "+";
    return `${Number(mantissa)}e${sign}${String(Math.abs(power)).padStart(2, "0")}`;
  }

  function unit(magnitude, kind) {
    if (kind === "") return [1, ""];
    if (kind === "s") return TIME.find(([low]) => magnitude >= low || !low).slice(1);
    if (kind === "J" && magnitude < 1e3) {
      const [, scale, prefix] = SMALL.find(([low]) => magnitude >= low);
      return [scale, prefix + kind];
    }
    const [low, prefix] = PREFIXES.find(([low]) => magnitude >= low);
    return [low || 1, prefix + kind];
  }

  function decimals(value, digits = 3, most = 3) {
    if (value === 0 || !Number.isFinite(value)) return 0;
    const power = Math.floor(Math.log10(Math.abs(value)));
    return Math.min(Math.max(digits - 1 - power, 0), most);
  }

  // Mean and sample standard deviation; null without values.
  function spread(values) {
    if (!values.length) return null;
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
    const std = values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : null;
    return { values, mean, std };
  }

  const alone = (value) => ({ values: [value], mean: value, std: null });

  function quantity(value, kind, like = null) {
    if (value === null) return "-";
    const { mean, std } = typeof value === "number" ? alone(value) : value;
    const [scale, name] = unit(like === null ? mean : like, kind);
    let places = decimals(mean / scale);
    if (std) {
      const rounded = Number((std / scale).toExponential(0));
      places = Math.max(places, Math.min(decimals(rounded, 1), places + 1));
    }
    let text = fixed(mean / scale, places);
    if (std !== null) text += ` ± ${fixed(std / scale, places)}`;
    return `${text} ${name}`.trimEnd();
  }

  function smallest(values) {
    const means = values.filter((v) => v !== null && v.mean > 0).map((v) => v.mean);
    return means.length ? Math.min(...means) : null;
  }

  function times(ratio) {
    return `${fixed(ratio, Math.min(decimals(ratio), 2))}×`;
  }

  function plain(value) {
    if (value === null) return "-";
    if (value.std === null) return fixed(value.mean, 0);
    return `${fixed(value.mean, 1)} ± ${fixed(value.std, 1)}`;
  }

  // ---- the target metric -----------------------------------------------------------------------

  function text(metric, value) {
    if (value === null || value === undefined) return "-";
    if (metric.share) return `${fixed(100 * value, 2)} %`;
    const size = Math.abs(value);
    return size > 0 && size < 0.01 ? general(value, 4) : fixed(value, decimals(size, 4, 5));
  }

  function short(metric, target) {
    return metric.share ? `${general(100 * target, 6)} %` : general(target, 6);
  }

  function named(metric, target) {
    return metric.share ? short(metric, target) : `${metric.label} ${short(metric, target)}`;
  }

  function reached(metric, value, target) {
    return metric.higher_is_better ? value >= target : value <= target;
  }

  function best(metric, values) {
    const better = metric.higher_is_better ? Math.max : Math.min;
    return values.reduce((a, b) => better(a, b));
  }

  // A value that missed a target is never shown as if it had reached it.
  function missed(metric, value, target) {
    const places = metric.share ? 4 : decimals(value, 4, 12);
    if (!reached(metric, Number(fixed(value, places)), target)) return text(metric, value);
    const away = metric.higher_is_better ? Math.floor : Math.ceil;
    const nudge = metric.higher_is_better ? 1e-5 : -1e-5;
    return text(metric, away(value * 10 ** places + nudge) / 10 ** places);
  }

  // ---- results for a target --------------------------------------------------------------------

  // What a run had spent at its first evaluation at the target; null if it did not get there.
  function costTo(metric, run, target, column) {
    const at = run.values.findIndex((value) => reached(metric, value, target));
    return at < 0 ? null : run.costs[column][at];
  }

  // The results of every method for a target, over runs that `shown(method, run)` lets pass.
  // Entries are in the order of the methods; null for a method without such a run.
  function targetResults(data, target, shown = () => true) {
    let reference = null;
    return data.methods.map((method, i) => {
      const runs = method.runs.filter((run) => shown(method, run));
      if (!runs.length) return null;
      const at = {};
      for (const { column } of data.axes) {
        const costs = runs.map((run) => costTo(data.metric, run, target, column));
        at[column] = spread(costs.filter((cost) => cost !== null));
      }
      const result = {
        name: method.name,
        reached: at.virtual_s ? at.virtual_s.values.length : 0,
        seeds: runs.length,
        at,
        best: best(data.metric, runs.flatMap((run) => run.values)),
        exact: runs.every((run) => run.exact),
      };
      if (i === 0) reference = result;
      const ours = at.virtual_s;
      const base = reference && reference.at.virtual_s;
      result.speedUp = ours && base && ours.mean > 0 ? base.mean / ours.mean : null;
      result.always = result.reached === result.seeds;
      return result;
    });
  }

  // The rows of the table for a target: [label, cells], with null for a method that is not shown.
  function targetRows(data, target, shown) {
    const { metric, methods, axes } = data;
    const results = targetResults(data, target, shown);
    const like = smallest(results.map((r) => r && r.at.virtual_s));
    const cells = (make) => results.map((result, i) => (result ? make(result, i) : null));
    const costs = (column, kind) => {
      const unitOf = smallest(results.map((r) => r && r.at[column]));
      return cells((r) => quantity(r.at[column], kind, unitOf));
    };
    const rows = [[`virtual time to ${named(metric, target)}`, cells((result) => {
      if (!result.at.virtual_s) return `not reached (best ${missed(metric, result.best, target)})`;
      const time = quantity(result.at.virtual_s, "s", like);
      return result.always ? time : `${time} (${result.reached} of ${result.seeds} seeds)`;
    })]];
    if (methods.length > 1) {
      rows.push([`  speed-up over ${methods[0].name}`, cells((result, i) => {
        if (i === 0) return result.at.virtual_s ? "1 (reference)" : "-";
        if (result.speedUp === null) return "-";
        const some = result.always && results[0].always ? "" : " *";
        return times(result.speedUp) + some;
      })]);
    }
    rows.push(["  server steps", cells((result) => plain(result.at.step))]);
    rows.push(["  sent by devices until then", costs("bytes_up", "B")]);
    if (axes.some(({ column }) => column === "joules")) {
      rows.push(["  energy of devices until then", costs("joules", "J")]);
    }
    return rows;
  }

  return { fixed, general, unit, decimals, spread, quantity, text, short, named, reached, costTo,
    targetResults, targetRows };
})();
