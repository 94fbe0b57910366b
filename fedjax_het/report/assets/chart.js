"use strict";
// The curves: the target metric against a cost of the reader's choice, drawn by uPlot.
const Chart = (() => {
  const MOST_POINTS = 400; // per line, more than a screen shows
  const WIDE = 5; // ratio of values from which a falling metric is drawn on a log scale
  const GREY = "#555";

  // At most `most` of the values, evenly spread from the first to the last.
  function evenly(values, most) {
    if (values.length <= most) return values;
    const step = (values.length - 1) / (most - 1);
    return Array.from({ length: most }, (_, i) => values[Math.round(i * step)]);
  }

  // The curve at x, between its points a straight line; null outside of it.
  function at(curve, x) {
    const { xs, ys } = curve;
    const last = xs.length - 1;
    if (last < 0 || x < xs[0] || x > xs[last]) return null;
    let low = 0;
    let high = last;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (xs[middle] <= x) low = middle;
      else high = middle;
    }
    if (x >= xs[high]) return ys[high];
    return ys[low] + ((x - xs[low]) / (xs[high] - xs[low])) * (ys[high] - ys[low]);
  }

  // The visible curves of a method: evaluations with a finite value.
  function curvesOf(data, method, choice, factor) {
    return method.runs.filter((run) => choice.shows(method, run)).map((run) => {
      const values = choice.values === "worst" ? run.worst || [] : run.values;
      const costs = run.costs[choice.axis];
      const kept = [...values.keys()].filter((i) => values[i] !== null);
      return { seed: run.seed, xs: kept.map((i) => costs[i]), ys: kept.map((i) => values[i] * factor) };
    }).filter((curve) => curve.xs.length);
  }

  // Lines to draw: {method, label, color, dash, width, line, band}; `line` and the two of `band`
  // are functions of x. Over several seeds a mean with the range from the lowest to the highest
  // where all are known, and beyond it the seeds that ran on.
  function linesOf(method, curves, together) {
    const look = { method: method.name, color: method.color, dash: method.dash };
    const each = (curve, width, from) => ({
      ...look, width, seed: curve.seed, from, xs: evenly(curve.xs, MOST_POINTS),
      line: (x) => (x < from ? null : at(curve, x)),
    });
    if (!curves.length) return [];
    if (curves.length === 1) return [each(curves[0], 2, -Infinity)];
    if (!together) return curves.map((curve) => each(curve, 1.3, -Infinity));
    const low = Math.max(...curves.map(({ xs }) => xs[0]));
    const high = Math.min(...curves.map(({ xs }) => xs[xs.length - 1]));
    const common = [...new Set(curves.flatMap(({ xs }) => xs))]
      .filter((x) => x >= low && x <= high).sort((a, b) => a - b);
    const inside = (combine) => (x) =>
      (x < low || x > high ? null : combine(curves.map((curve) => at(curve, x))));
    const mean = (ys) => ys.reduce((sum, y) => sum + y, 0) / ys.length;
    const lines = common.length ? [{
      ...look, width: 2, seed: null, from: low, xs: evenly(common, MOST_POINTS),
      line: inside(mean), band: [inside((ys) => Math.min(...ys)), inside((ys) => Math.max(...ys))],
      seeds: curves.length,
    }] : [];
    const longer = curves.filter(({ xs }) => xs[xs.length - 1] > high);
    return [...lines, ...longer.map((curve) => each(curve, 0.9, high))];
  }

  // A chart in `place`. `read(reading)` is told what is under the cursor: {x, entries}, or null.
  function make(place, read) {
    let plot = null;
    let lines = [];
    let drawn = null;

    function destroy() {
      if (plot) plot.destroy();
      plot = null;
    }

    function draw(data, choice) {
      const { metric } = data;
      const factor = metric.share ? 100 : 1;
      const curves = data.methods.map((method) => curvesOf(data, method, choice, factor));
      lines = data.methods.flatMap((method, i) => linesOf(method, curves[i], choice.together));
      destroy();
      place.replaceChildren();
      if (!lines.length) {
        place.textContent = "Nothing to draw: every method or seed is hidden.";
        return;
      }
      const axis = data.axes.find(({ column }) => column === choice.axis);
      const ends = curves.flat().map(({ xs }) => xs[xs.length - 1]);
      const [scale, unitName] = Numbers.unit(Math.max(...ends), axis.kind);
      const grid = [...new Set(lines.flatMap((line) =>
        (line.from > -Infinity ? [line.from, ...line.xs] : line.xs)))].sort((a, b) => a - b);
      const all = curves.flat().flatMap(({ ys }) => ys);
      const lowest = all.reduce((a, b) => Math.min(a, b));
      const highest = all.reduce((a, b) => Math.max(a, b));
      const log = !metric.share && !metric.higher_is_better && lowest > 0 && highest > WIDE * lowest;
      const kind = choice.values === "worst" ? "worst-decile client" : "test";
      const unitOf = metric.share ? " (%)" : "";

      const series = [{}];
      const columns = [grid.map((x) => x / scale)];
      const bands = [];
      for (const line of lines) {
        const look = { stroke: line.color, width: line.width, dash: line.dash, spanGaps: true,
          points: { show: false } };
        series.push(look);
        columns.push(grid.map(line.line));
        if (!line.band) continue;
        bands.push({ series: [series.length + 1, series.length], fill: `${line.color}2e` });
        for (const edge of line.band) {
          series.push({ ...look, width: 0, stroke: "transparent", band: true });
          columns.push(grid.map(edge));
        }
      }
      drawn = { data, choice, scale, axis, grid, factor };
      const narrow = place.clientWidth < 600;
      plot = new uPlot({
        width: place.clientWidth,
        height: narrow ? 300 : 400,
        legend: { show: false },
        cursor: { y: false, drag: { x: true, y: false }, points: { show: false } },
        scales: { x: { time: false, range: (_, low, high) => [low, high > low ? high : low + 1] },
          y: { distr: log ? 3 : 1 } },
        series,
        bands,
        axes: [
          { label: unitName ? `${axis.label} (${unitName})` : axis.label, labelSize: 24,
            size: 30, gap: 4, grid: { stroke: "#eee", width: 1 },
            ticks: { stroke: "#ccc", width: 1, size: 4 }, stroke: "#333", font: "13px system-ui, sans-serif",
            labelFont: "13px system-ui, sans-serif" },
          { label: `${kind} ${metric.label}${unitOf}${log ? ", log scale" : ""}`, labelSize: 26,
            size: narrow ? 36 : 46, gap: 4, grid: { stroke: "#eee", width: 1 },
            ticks: { stroke: "#ccc", width: 1, size: 4 }, stroke: "#333",
            font: "13px system-ui, sans-serif", labelFont: "13px system-ui, sans-serif",
            values: (_, splits) => splits.map((v) => (v === null ? "" : Numbers.general(v, 4))) },
        ],
        hooks: { setCursor: [report], draw: [targets], setScale: [zoomed] },
      }, columns, place);
      const { zoom } = choice;
      if (zoom && zoom.axis === choice.axis) {
        plot.setScale("x", { min: zoom.low / scale, max: zoom.high / scale });
      }
    }

    // Keeps the part of the axis that the reader drew a frame around.
    function zoomed(u, key) {
      if (key !== "x" || u !== plot) return;
      const { min, max } = u.scales.x;
      const { grid, scale, choice } = drawn;
      const whole = min <= grid[0] / scale && max >= grid[grid.length - 1] / scale;
      choice.zoom = whole ? null : { axis: choice.axis, low: min * scale, high: max * scale };
    }

    // Dashed lines at the targets, and a mark where a method reached one with every seed shown.
    function targets(u) {
      const { data, choice, scale, factor } = drawn;
      if (choice.values === "worst") return;
      const { ctx, bbox } = u;
      const goals = new Set(data.targets);
      if (choice.target !== null) goals.add(choice.target);
      ctx.save();
      ctx.beginPath();
      ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height);
      ctx.clip();
      for (const goal of goals) {
        const y = Math.round(u.valToPos(goal * factor, "y", true));
        if (!(y >= bbox.top && y <= bbox.top + bbox.height)) continue;
        const chosen = goal === choice.target;
        ctx.strokeStyle = chosen ? "#000" : GREY;
        ctx.lineWidth = (chosen ? 1.6 : 1) * uPlot.pxRatio;
        ctx.setLineDash([4 * uPlot.pxRatio, 3 * uPlot.pxRatio]);
        ctx.beginPath();
        ctx.moveTo(bbox.left, y);
        ctx.lineTo(bbox.left + bbox.width, y);
        ctx.stroke();
        ctx.setLineDash([]);
        ctx.font = `${chosen ? "bold " : ""}${12 * uPlot.pxRatio}px system-ui, sans-serif`;
        ctx.fillStyle = chosen ? "#000" : GREY;
        ctx.textAlign = "left";
        const label = [Numbers.short(data.metric, goal), bbox.left + 5 * uPlot.pxRatio,
          y - 4 * uPlot.pxRatio];
        ctx.strokeStyle = "#fff"; // a rim, over curves and other labels
        ctx.lineWidth = 4 * uPlot.pxRatio;
        ctx.strokeText(...label);
        ctx.fillText(...label);
        for (const result of Numbers.targetResults(data, goal, choice.shows)) {
          if (!result || !result.always) continue;
          const method = data.methods.find(({ name }) => name === result.name);
          const x = u.valToPos(result.at[choice.axis].mean / scale, "x", true);
          ctx.beginPath();
          ctx.arc(x, y, 4.5 * uPlot.pxRatio, 0, 2 * Math.PI);
          ctx.fillStyle = method.color;
          ctx.fill();
          ctx.strokeStyle = "#fff";
          ctx.lineWidth = 1.5 * uPlot.pxRatio;
          ctx.stroke();
        }
      }
      ctx.restore();
    }

    function report(u) {
      read(reading(u));
    }

    // What is under the cursor; null if it is not over the chart.
    function reading(u = plot) {
      const { idx } = u.cursor;
      if (idx === null || idx === undefined || u.cursor.left < 0) return null;
      const x = drawn.grid[idx];
      const entries = lines.map((line) => {
        const y = line.line(x);
        if (y === null) return null;
        const [low, high] = line.band ? line.band.map((edge) => edge(x)) : [null, null];
        const value = (v) => (v === null ? null : v / drawn.factor);
        return { method: line.method, seed: line.seed, seeds: line.seeds, value: value(y),
          low: value(low), high: value(high) };
      }).filter((entry) => entry);
      return { x, axis: drawn.axis, left: u.cursor.left + u.over.offsetLeft, entries,
        width: place.clientWidth };
    }

    // Moves the cursor by so many points, for the keyboard.
    function step(by) {
      if (!plot) return;
      const last = drawn.grid.length - 1;
      const from = plot.cursor.left >= 0 && plot.cursor.idx !== null ? plot.cursor.idx : -by;
      const idx = Math.min(Math.max(from + by, 0), last);
      const left = plot.valToPos(drawn.grid[idx] / drawn.scale, "x");
      plot.setCursor({ left: Math.max(left, 0), top: 10 });
    }

    function leave() {
      if (plot) plot.setCursor({ left: -10, top: -10 });
    }

    // Where the cursor is, from the left; negative if it is not over the chart.
    const cursor = () => (plot ? plot.cursor.left : -1);

    function point(left) {
      if (plot && left >= 0) plot.setCursor({ left, top: 10 });
      else read(null);
    }

    function resize() {
      if (plot) plot.setSize({ width: place.clientWidth, height: plot.height });
    }

    return { draw, step, leave, reading, cursor, point, resize };
  }

  return { make, evenly };
})();
