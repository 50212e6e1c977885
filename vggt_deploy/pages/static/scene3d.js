"use strict";
/* Points and cameras, as cloud.py packs them, drawn by plotly. The axes of the data are OpenCV's (x
   right, y down, z forward); the view has up at the top: (x, z, -y). */
(() => {
  const STEPS = 65534;
  const NOTHING = 65535;
  const HOME = { turn: -Math.PI / 2, tilt: 0.42, distance: 1.35 };
  const LONGEST = 1.3; // the box's longest side, in the units of the camera's distance
  const TURN = Math.PI / 16;
  const ZOOM = 1.18;
  const MOST_TILT = 1.5;

  /* {x, y, z, index}: the cloud's points in the box, and which of the shared pixels they are. */
  function decode(scene, cloud) {
    const raw = Pages.bytes(cloud.points);
    const view = new DataView(raw.buffer);
    const x = new Float32Array(cloud.shown);
    const y = new Float32Array(cloud.shown);
    const z = new Float32Array(cloud.shown);
    const index = new Uint32Array(cloud.shown);
    let kept = 0;
    for (let i = 0; i < scene.count; i += 1) {
      const q = view.getUint16(6 * i, true);
      if (q !== NOTHING) {
        x[kept] = scene.low[0] + q * scene.step[0];
        z[kept] = -(scene.low[1] + view.getUint16(6 * i + 2, true) * scene.step[1]);
        y[kept] = scene.low[2] + view.getUint16(6 * i + 4, true) * scene.step[2];
        index[kept] = i;
        kept += 1;
      }
    }
    return { x, y, z, index };
  }

  function photoColours(rgb, index) {
    return Array.from(index, (i) => `rgb(${rgb[3 * i]},${rgb[3 * i + 1]},${rgb[3 * i + 2]})`);
  }

  /* How far each point is from the same pixel's point in the first cloud; NaN where that has none. */
  function distances(points, first, count) {
    const where = new Int32Array(count).fill(-1);
    first.index.forEach((pixel, i) => { where[pixel] = i; });
    return Array.from(points.index, (pixel, i) => {
      const j = where[pixel];
      if (j < 0) return NaN;
      return Math.hypot(points.x[i] - first.x[j], points.y[i] - first.y[j], points.z[i] - first.z[j]);
    });
  }

  function percentile(values, part) {
    const sorted = values.filter(Number.isFinite).sort((a, b) => a - b);
    return sorted.length ? sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))] : 0;
  }

  function inView(p) {
    return [p[0], p[2], -p[1]];
  }

  /* The edges of all frusta as one broken line: eye to each corner, and around the picture. */
  function frusta(cameras) {
    const lines = [[], [], []];
    const push = (p) => inView(p).forEach((value, axis) => lines[axis].push(value));
    const lift = () => lines.forEach((axis) => axis.push(null));
    cameras.forEach((camera) => {
      camera.corners.forEach((corner) => { push(camera.centre); push(corner); lift(); });
      [...camera.corners, camera.corners[0]].forEach(push);
      lift();
    });
    return lines;
  }

  function hasWebgl() {
    const canvas = document.createElement("canvas");
    const context = canvas.getContext("webgl");
    if (!context) return false;
    const ending = context.getExtension("WEBGL_lose_context");
    if (ending) ending.loseContext(); // a browser gives out a few of them
    return true;
  }

  function start(figure) {
    const scene = Pages.data(`scene-${figure.dataset.scene}`);
    const part = (name) => figure.querySelector(`[data-part="${name}"]`);
    if (!hasWebgl()) {
      figure.querySelectorAll(".controls, [data-part=view], [data-part=keys]").forEach((element) => {
        element.hidden = true;
      });
      part("status").textContent = "Not drawn: this browser has no WebGL, which the view is drawn with. "
        + "Another browser, or this one with its graphics acceleration switched on, shows it.";
      figure.dataset.drawn = "";
      return;
    }
    const plot = part("view");
    const rgb = Pages.bytes(scene.colours);
    const decoded = new Map();
    const view = { ...HOME };

    scene.clouds.forEach((cloud, i) => part("cloud").add(new Option(cloud.name, String(i))));
    const chosen = figure.dataset.first;
    if (chosen !== undefined) part("cloud").value = chosen;
    if (scene.clouds.length < 2) {
      figure.querySelector(".clouds").hidden = true;
      figure.querySelector(".colouring").hidden = true;
    } else {
      part("colour").options[1].text = `distance from ${scene.clouds[0].name}`;
    }

    function pointsOf(i) {
      if (!decoded.has(i)) decoded.set(i, decode(scene, scene.clouds[i]));
      return decoded.get(i);
    }

    function camera() {
      const flat = view.distance * Math.cos(view.tilt);
      return {
        eye: {
          x: flat * Math.cos(view.turn),
          y: flat * Math.sin(view.turn),
          z: view.distance * Math.sin(view.tilt),
        },
        up: { x: 0, y: 0, z: 1 },
        center: { x: 0, y: 0, z: 0 },
        projection: { type: "perspective" },
      };
    }

    /* What the mouse did to the library's camera, taken over before a button goes on from there. */
    function fromPlot() {
      const eye = plot.layout && plot.layout.scene.camera && plot.layout.scene.camera.eye;
      if (!eye) return;
      view.distance = Math.hypot(eye.x, eye.y, eye.z) || HOME.distance;
      view.turn = Math.atan2(eye.y, eye.x);
      view.tilt = Math.asin(eye.z / view.distance);
    }

    function pointTrace(cloud, i) {
      const points = pointsOf(i);
      const marker = { size: scene.count > 15000 ? 1.8 : 2.6, symbol: "square", line: { width: 0 } };
      if (part("colour").value === "distance" && i > 0) {
        const far = distances(points, pointsOf(0), scene.count);
        const top = percentile(far, 0.98) || 1e-9;
        Object.assign(marker, {
          color: far,
          cmin: 0,
          cmax: top,
          colorscale: scene.distances,
          showscale: true,
          colorbar: {
            title: { text: Pages.plain(scene.unit || "distance"), side: "right" },
            thickness: 10, len: 0.7, outlinewidth: 0,
            tickfont: { color: Pages.style("--ink") },
          },
        });
      } else {
        marker.color = photoColours(rgb, points.index);
      }
      return {
        type: "scatter3d", mode: "markers", x: points.x, y: points.y, z: points.z, marker,
        hoverinfo: "skip", showlegend: false,
      };
    }

    function cameraTraces(cloud) {
      const colour = Pages.style("--camera");
      const [x, y, z] = frusta(cloud.cameras);
      const centres = cloud.cameras.map((one) => inView(one.centre));
      const axis = (k) => centres.map((p) => p[k]);
      const names = cloud.cameras.map((one, k) => Pages.plain(`${k + 1}: ${one.name}`));
      const common = { type: "scatter3d", showlegend: false };
      return [
        { ...common, mode: "lines", x, y, z, line: { color: colour, width: 3 }, hoverinfo: "skip" },
        {
          ...common, mode: "lines+markers+text", x: axis(0), y: axis(1), z: axis(2),
          line: { color: colour, width: 1.5, dash: "dot" }, marker: { color: colour, size: 4 },
          text: cloud.cameras.map((one, k) => String(k + 1)), textposition: "top center",
          textfont: { color: colour, size: 12 }, hovertext: names, hoverinfo: "text",
        },
      ];
    }

    function draw() {
      const i = Number(part("cloud").value);
      const cloud = scene.clouds[i];
      const shown = part("cameras").checked && cloud.cameras.length > 0;
      const axis = (k, sign = 1) => {
        const ends = [scene.low[k], scene.low[k] + STEPS * scene.step[k]].map((v) => sign * v);
        return { visible: false, range: ends.sort((a, b) => a - b), autorange: false };
      };
      /* By the box, and not by what is shown in it: without the cameras nothing moves. */
      const most = Math.max(...scene.step);
      const side = (k) => (LONGEST * scene.step[k]) / most;
      const layout = {
        margin: { l: 0, r: 0, t: 0, b: 0 },
        paper_bgcolor: Pages.style("--view"),
        font: { color: Pages.style("--ink") },
        uirevision: "kept",
        scene: {
          aspectmode: "manual", aspectratio: { x: side(0), y: side(2), z: side(1) }, dragmode: "turntable", uirevision: "kept",
          xaxis: axis(0), yaxis: axis(2), zaxis: axis(1, -1), camera: camera(),
        },
      };
      const traces = [pointTrace(cloud, i), ...(shown ? cameraTraces(cloud) : [])];
      const config = { displayModeBar: false, responsive: true, scrollZoom: true };
      return Plotly.react(plot, traces, layout, config).then(() => {
        figure.dataset.drawn = cloud.name;
        part("status").textContent = status(cloud);
      });
    }

    function status(cloud) {
      const lost = [
        cloud.not_finite ? `${cloud.not_finite.toLocaleString("en")} not finite` : "",
        cloud.outside ? `${cloud.outside.toLocaleString("en")} outside the view` : "",
      ].filter(Boolean).join(", ");
      const said = `${cloud.shown.toLocaleString("en")} points${lost ? ` (${lost})` : ""}.`;
      return cloud.note ? `${said} ${cloud.note}` : said;
    }

    const moves = {
      left: () => { view.turn -= TURN; },
      right: () => { view.turn += TURN; },
      up: () => { view.tilt = Math.min(MOST_TILT, view.tilt + TURN / 2); },
      down: () => { view.tilt = Math.max(-MOST_TILT, view.tilt - TURN / 2); },
      in: () => { view.distance /= ZOOM; },
      out: () => { view.distance *= ZOOM; },
      top: () => { view.tilt = MOST_TILT; },
      reset: () => { Object.assign(view, HOME); },
    };
    const keys = {
      ArrowLeft: "left", ArrowRight: "right", ArrowUp: "up", ArrowDown: "down",
      "+": "in", "=": "in", "-": "out", t: "top", T: "top", 0: "reset",
    };

    function move(name) {
      fromPlot();
      moves[name]();
      const seen = camera();
      if (name !== "reset" && plot.layout.scene.camera.center) {
        seen.center = plot.layout.scene.camera.center;
      }
      Plotly.relayout(plot, { "scene.camera": seen });
    }

    figure.querySelectorAll("[data-move]").forEach((button) => {
      button.addEventListener("click", () => move(button.dataset.move));
    });
    plot.addEventListener("keydown", (event) => {
      if (!(event.key in keys) || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      move(keys[event.key]);
    });
    /* The wheel scrolls the page until the view was chosen; else nobody gets past it. */
    plot.addEventListener("wheel", (event) => {
      if (!plot.contains(document.activeElement)) event.stopPropagation();
    }, { capture: true });
    plot.addEventListener("pointerdown", () => plot.focus({ preventScroll: true }));
    ["cloud", "colour", "cameras"].forEach((name) => part(name).addEventListener("change", draw));
    Pages.onTheme(draw);
    figure.addEventListener("show-cloud", (event) => {
      part("cloud").value = String(event.detail);
      draw();
    });

    /* What the graphics card drew is not there for the printer: a picture of it stands in. */
    const still = document.createElement("img");
    still.alt = plot.getAttribute("aria-label");
    still.className = "still";
    Pages.onPrint(() => {
      still.src = plot._fullLayout.scene._scene.toImage("png");
      plot.after(still);
    }, () => still.remove());
    draw();
  }

  document.querySelectorAll("[data-scene]").forEach((figure) => {
    Pages.whenNear(figure.querySelector('[data-part="view"]'), () => start(figure));
  });
})();
