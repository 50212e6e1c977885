"use strict";
/* The two plots of a report, drawn by plotly from what page_plots.py wrote down. */
(() => {
  const source = Pages.data("plots");
  if (!source) return;
  const NAMES = {
    torch: "PyTorch",
    onnxruntime: "ONNX Runtime",
    tensorrt: "TensorRT (GPU)",
    "tensorrt-rtx": "TensorRT-RTX (GPU)",
  };
  const SYMBOLS = { float: "circle", dynamic: "diamond", static: "square" };
  const OVER = {
    disk: { title: "On disk, MB", value: (v) => v.disk_mb },
    latency: { title: "Latency, median of a call, ms", value: (v) => v.latency && v.latency.median_ms },
  };
  const CONFIG = { displayModeBar: false, responsive: true };
  const NARROW = 640;
  const PAPER = 690; // the width of an A4 page within its margins
  let printing = false;

  const chosen = document.getElementById("plot-measure");
  const over = document.getElementById("plot-over");
  const accuracy = document.getElementById("plot-accuracy");
  const latency = document.getElementById("plot-latency");

  const { plain } = Pages;

  function base(height) {
    const axis = () => ({
      gridcolor: Pages.style("--line"), zerolinecolor: Pages.style("--strong-line"),
      linecolor: Pages.style("--strong-line"), tickcolor: Pages.style("--strong-line"),
      automargin: true, title: { font: { size: 13 }, standoff: 10 },
    });
    return {
      height,
      ...(printing ? { width: PAPER } : {}),
      margin: { l: 10, r: 12, t: 8, b: 10 },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12.5, color: Pages.style("--ink") },
      hoverlabel: {
        bgcolor: Pages.style("--paper"), bordercolor: Pages.style("--strong-line"),
        font: { color: Pages.style("--ink"), size: 13 }, align: "left",
      },
      dragmode: window.matchMedia("(pointer: fine)").matches ? "zoom" : false,
      hovermode: "closest",
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", xanchor: "left" },
      xaxis: axis(),
      yaxis: axis(),
    };
  }

  /* With its interval, to the decimals of the table. */
  function measured(measure, value) {
    const [mean, low, high] = value.map((part) => (part === null ? null : part.toFixed(measure.digits)));
    return `${mean} ${plain(measure.unit)}`.trim() + (low === null ? "" : ` (95 %: ${low} to ${high})`);
  }

  function speed(v) {
    return v.faster && v.label !== source.reference ? `, ${v.faster.toFixed(2)} x the speed of ${source.reference}` : "";
  }

  function cost(v) {
    return [
      v.disk_mb === null ? "" : `${v.disk_mb.toFixed(2)} MB on disk${v.smaller ? `, ${v.smaller.toFixed(2)} times smaller` : ""}`,
      v.latency ? `${Pages.number(v.latency.median_ms)} ms${speed(v)}` : "",
      v.advised.length ? `recommended: ${v.advised.join(", ")}` : "",
    ].filter(Boolean).map(plain).join("<br>");
  }

  /* Those that no other beats in both: only they are named in the plot, the others when pointed at. */
  function front(points, better) {
    const sign = better === "more" ? -1 : 1;
    const sorted = [...points].sort((a, b) => a.x - b.x || sign * (a.y - b.y));
    let best = Infinity;
    return new Set(sorted.filter((point) => {
      if (sign * point.y >= best) return false;
      best = sign * point.y;
      return true;
    }).map((point) => point.v.label));
  }

  /* Names beside their points, as far as they fit: none over another name or another point. Sizes in
     pixels, by the ranges of the axes and the usual width of a letter. */
  function labels(points, named, layout) {
    const wide = (printing ? PAPER : accuracy.clientWidth) - 90;
    const high = layout.height - 110;
    const [x0, x1] = layout.xaxis.range;
    const [y0, y1] = layout.yaxis.range;
    const at = (p) => ({ x: (wide * (p.x - x0)) / (x1 - x0), y: (high * (y1 - p.y)) / (y1 - y0) });
    const taken = points.map((p) => {
      const { x, y } = at(p);
      return [x - 7, y - 7, x + 7, y + 7];
    });
    const free = (box) => box[0] > 0 && box[2] < wide && taken.every(
      (other) => box[2] < other[0] || box[0] > other[2] || box[3] < other[1] || box[1] > other[3],
    );
    const found = [];
    const wanted = points.filter((p) => named.has(p.v.label) || p.v.advised.length);
    wanted.sort((a, b) => b.v.advised.length - a.v.advised.length);
    wanted.forEach((p) => {
      const { x, y } = at(p);
      const width = 6.8 * p.v.scheme.length;
      const beside = x > 0.6 * wide ? ["right", -9] : ["left", 9];
      const places = [[...beside, 11], [...beside, -11], ["left", 9, 11], ["left", 9, -11]];
      const place = places.find(([side, dx, dy]) => {
        const left = side === "left" ? x + dx : x + dx - width;
        return free([left, y - dy - 7, left + width, y - dy + 7]);
      });
      if (!place) return;
      const [side, dx, dy] = place;
      const left = side === "left" ? x + dx : x + dx - width;
      taken.push([left, y - dy - 7, left + width, y - dy + 7]);
      found.push({
        x: p.x, y: p.y, text: plain(p.v.scheme), showarrow: false, xanchor: side, xshift: dx, yshift: dy,
        font: { size: 12, color: Pages.style(`--${p.v.runtime}`) },
      });
    });
    return found;
  }

  function drawAccuracy() {
    const measure = source.measures.find((m) => m.key === chosen.value);
    const { title, value } = OVER[over.value];
    const said = document.getElementById("plot-accuracy-said");
    const points = source.variants
      .filter((v) => measure && v.measures[measure.key] && value(v) !== null && value(v) !== undefined)
      .map((v) => ({ v, x: value(v), y: v.measures[measure.key][0], all: v.measures[measure.key] }));
    if (!points.length) {
      accuracy.hidden = true;
      said.textContent = "Nothing to draw: no variant has both numbers.";
      return;
    }
    accuracy.hidden = false;
    const named = front(points, measure.better);
    const unit = measure.unit ? `, ${measure.unit}` : "";
    const far = Math.max(...points.map((point) => point.x));
    const traces = Object.keys(NAMES).filter((r) => points.some((p) => p.v.runtime === r)).map((runtime) => {
      // Those with a ring last: the legend shows the first one.
      const own = points.filter((point) => point.v.runtime === runtime)
        .sort((a, b) => (a.v.advised.length ? 2 : 0) + (a.v.activations !== "float")
          - (b.v.advised.length ? 2 : 0) - (b.v.activations !== "float"));
      const colour = Pages.style(`--${runtime}`);
      return {
        type: "scatter", mode: "markers", name: NAMES[runtime],
        x: own.map((point) => point.x),
        y: own.map((point) => point.y),
        marker: {
          color: colour, size: 11, symbol: own.map((p) => SYMBOLS[p.v.activations]),
          line: {
            color: own.map((p) => Pages.style(p.v.advised.length ? "--ink" : "--paper")),
            width: own.map((p) => (p.v.advised.length ? 2 : 1.5)),
          },
        },
        error_y: {
          type: "data", symmetric: false, thickness: 1.2, width: 3, color: colour,
          array: own.map((p) => (p.all[2] === null ? 0 : p.all[2] - p.y)),
          arrayminus: own.map((p) => (p.all[1] === null ? 0 : p.y - p.all[1])),
        },
        text: own.map((p) => `<b>${plain(p.v.label)}</b><br>${plain(measure.title)}: ${measured(measure, p.all)}<br>${cost(p.v)}`),
        hovertemplate: "%{text}<extra></extra>",
      };
    });
    const layout = base(460);
    layout.xaxis.title.text = title;
    layout.yaxis.title.text = plain(`${measure.title}${unit}`);
    const ends = points.flatMap((p) => [p.y, p.all[1], p.all[2]]).filter((y) => y !== null);
    const room = (Math.max(...ends) - Math.min(...ends)) || Math.abs(ends[0]) || 1;
    layout.xaxis.range = [0, 1.07 * far];
    layout.yaxis.range = [Math.min(...ends) - 0.08 * room, Math.max(...ends) + 0.1 * room];
    layout.annotations = labels(points, named, layout);
    Plotly.react(accuracy, traces, layout, CONFIG);
    const without = source.variants.length - points.length;
    said.textContent = [
      `${measure.better === "less" ? "Lower" : "Higher"} and further left is better; named are the recommended ones and those that no other beats in both, where there is room.`,
      "Circle: float activations, diamond: dynamic, square: static. Drag to zoom, double-click to go back.",
      points.some((p) => p.v.advised.length) ? "Ringed: recommended." : "",
      points.some((p) => p.all[1] !== null) ? "Bars: the 95 % interval." : "",
      without ? `${without} of ${source.variants.length} variants lack one of the two numbers${over.value === "disk" ? " (of PyTorch, FP32 alone is a file)" : ""}.` : "",
    ].filter(Boolean).join(" ");
  }

  function drawLatency() {
    const rows = source.variants.filter((v) => v.latency)
      .sort((a, b) => b.latency.median_ms - a.latency.median_ms);
    const said = document.getElementById("plot-latency-said");
    if (!rows.length) {
      latency.hidden = true;
      said.textContent = "No variant was timed.";
      return;
    }
    const narrow = latency.clientWidth < NARROW;
    const where = new Map(rows.map((v, i) => [v.label, i]));
    const traces = Object.keys(NAMES).filter((r) => rows.some((v) => v.runtime === r)).flatMap((runtime) => {
      const own = rows.filter((v) => v.runtime === runtime);
      const colour = Pages.style(`--${runtime}`);
      return [
        {
          type: "scatter", mode: "markers", showlegend: false, hoverinfo: "skip",
          x: own.flatMap((v) => v.latency.samples_ms),
          y: own.flatMap((v) => v.latency.samples_ms.map(() => where.get(v.label))),
          marker: { color: colour, size: 9, symbol: "line-ns-open", opacity: 0.55 },
        },
        {
          type: "scatter", mode: "markers", name: NAMES[runtime],
          x: own.map((v) => v.latency.median_ms),
          y: own.map((v) => where.get(v.label)),
          marker: { color: colour, size: 10, symbol: own.map((v) => SYMBOLS[v.activations]) },
          error_x: {
            type: "data", symmetric: false, thickness: 1.6, width: 0, color: colour,
            array: own.map((v) => Math.max(0, v.latency.p90_ms - v.latency.median_ms)),
            arrayminus: own.map((v) => Math.max(0, v.latency.median_ms - v.latency.min_ms)),
          },
          text: own.map((v) => `<b>${plain(v.label)}</b><br>median ${Pages.number(v.latency.median_ms)} ms of ${v.latency.n}<br>fastest ${Pages.number(v.latency.min_ms)}, 90th percentile ${Pages.number(v.latency.p90_ms)}, IQR ${Pages.number(v.latency.iqr_ms, 3)} ms<br>${cost(v)}`),
          hovertemplate: "%{text}<extra></extra>",
        },
      ];
    });
    const layout = base(90 + rows.length * (narrow ? 38 : 25));
    layout.xaxis.title.text = "One call, all pictures, ms";
    layout.xaxis.rangemode = "tozero";
    layout.yaxis.range = [-0.7, rows.length - 0.3];
    layout.yaxis.zeroline = false;
    if (narrow) {
      layout.yaxis.showticklabels = false;
      layout.annotations = rows.map((v, i) => ({
        xref: "paper", x: 0, y: i, text: plain(v.label), showarrow: false, xanchor: "left",
        yshift: 13, font: { size: 11, color: Pages.style("--quiet") },
      }));
    } else {
      layout.yaxis.tickvals = rows.map((v, i) => i);
      layout.yaxis.ticktext = rows.map((v) => plain(v.label));
    }
    const reference = rows.find((v) => v.label === source.reference);
    if (reference) {
      layout.shapes = [{
        type: "line", x0: reference.latency.median_ms, x1: reference.latency.median_ms,
        yref: "paper", y0: 0, y1: 1, line: { color: Pages.style("--strong-line"), width: 1, dash: "dot" },
      }];
    }
    Plotly.react(latency, traces, layout, CONFIG);
    const most = rows.reduce((a, b) => (b.latency.n > a.latency.n ? b : a)).latency;
    const shown = most.samples_ms.length;
    const calls = shown < most.n ? `${shown} of ${most.n}, evenly spread` : `${most.n} each at most`;
    said.textContent = `Fastest at the top. The mark is the median, the bar goes from the fastest call to the 90th percentile, ticks are single calls (${calls}). The dotted line is the median of ${source.reference}.`;
  }

  /* Of PyTorch alone nothing but FP32 is a file: there latency is the axis with something to see. */
  if (source.variants.filter((v) => v.disk_mb !== null).length < 2) over.value = "latency";
  source.measures.forEach((m) => chosen.add(new Option(m.title, m.key)));
  [chosen, over].forEach((select) => select.addEventListener("change", drawAccuracy));
  Pages.whenNear(accuracy, drawAccuracy);
  Pages.whenNear(latency, drawLatency);
  function drawBoth() {
    drawAccuracy();
    drawLatency();
  }

  Pages.onTheme(drawBoth);
  Pages.onPrint(() => { printing = true; drawBoth(); }, () => {
    printing = false;
    [accuracy, latency].forEach(Plotly.purge); // a width once given is kept else
    drawBoth();
  });
  let wide = window.innerWidth >= NARROW;
  window.addEventListener("resize", () => {
    if ((window.innerWidth >= NARROW) !== wide) {
      wide = !wide;
      drawBoth();
    }
  });
})();
