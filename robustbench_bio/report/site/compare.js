(() => {
  const contests = JSON.parse(document.getElementById("contests").textContent).filter((c) => c.entries.length > 1);
  const byId = (id) => document.getElementById(id);
  const form = byId("choice");
  const { board: boards, a: left, b: right } = form.elements;
  let shown = null;

  function unpack(text, n) {
    const bytes = Uint8Array.from(atob(text), (sign) => sign.charCodeAt(0));
    return Array.from({ length: n }, (_, i) => Boolean((bytes[i >> 3] >> (7 - (i & 7))) & 1));
  }

  // Two-sided exact McNemar test: min(1, 2 P[X <= min]) with X binomial of the examples on which they differ.
  function mcnemar(onlyA, onlyB) {
    const m = onlyA + onlyB;
    const logs = new Float64Array(m + 1);
    for (let i = 1; i <= m; i++) logs[i] = logs[i - 1] + Math.log(i);
    let tail = 0;
    for (let k = 0; k <= Math.min(onlyA, onlyB); k++) tail += Math.exp(logs[m] - logs[k] - logs[m - k] - m * Math.LN2);
    return Math.min(1, 2 * tail);
  }

  const percent = (count, n) => (100 * count / n).toFixed(1);
  const chance = (p) => (p < 0.001 ? p.toExponential(1) : String(Number(p.toPrecision(2))));

  function fill(select, pairs) {
    select.replaceChildren(...pairs.map(([value, text]) => new Option(text, value)));
  }

  function board() {
    return contests.find((contest) => contest.name === boards.value);
  }

  function candidates() {
    const pairs = board().entries.map((entry) => [entry.model, `${entry.model}  (${entry.rank})`]);
    fill(left, pairs);
    fill(right, pairs);
  }

  function read() {
    const asked = fragment.read();
    const known = contests.some((contest) => contest.name === asked.board);
    boards.value = known ? asked.board : contests[0].name;
    candidates();
    const models = board().entries.map((entry) => entry.model);
    left.value = models.includes(asked.a) ? asked.a : models[0];
    right.value = models.includes(asked.b) ? asked.b : models.find((model) => model !== left.value);
    show();
  }

  function write() {
    fragment.write({ board: boards.value, a: left.value, b: right.value });
  }

  function trouble(text) {
    byId("trouble").textContent = text;
    byId("trouble").hidden = text === "";
    byId("comparison").hidden = text !== "";
  }

  function show() {
    const [a, b] = [left.value, right.value].map((model) => board().entries.find((entry) => entry.model === model));
    if (a === b) return trouble("Choose two different networks.");
    if (a.slice !== b.slice || a.n !== b.n) return trouble("These two were measured on different examples.");
    trouble("");
    const n = a.n;
    const sides = [a, b].map((entry) => ({ entry, clean: unpack(entry.clean, n), robust: unpack(entry.robust, n) }));
    const [sa, sb] = sides.map((side) => side.robust);
    const all = Array.from({ length: n }, (_, i) => i);
    const onlyA = all.filter((i) => sa[i] && !sb[i]);
    const onlyB = all.filter((i) => sb[i] && !sa[i]);
    const both = all.filter((i) => sa[i] && sb[i]).length;
    const neither = n - both - onlyA.length - onlyB.length;
    const totals = [both + onlyA.length, both + onlyB.length];
    const counts = {
      both, neither, n, "only-a": onlyA.length, "only-b": onlyB.length,
      "all-a": totals[0], "not-a": n - totals[0], "all-b": totals[1], "not-b": n - totals[1],
    };
    for (const [id, count] of Object.entries(counts)) byId(id).textContent = count.toLocaleString("en");
    const gap = (100 * (totals[0] - totals[1])) / n;
    const p = mcnemar(onlyA.length, onlyB.length);
    byId("sentence").textContent =
      `At ${board().threat}, ${a.model} is robust on ${percent(totals[0], n)} % of ${n.toLocaleString("en")} examples, ` +
      `${b.model} on ${percent(totals[1], n)} %: a difference of ${gap > 0 ? "+" : gap < 0 ? "−" : ""}` +
      `${Math.abs(gap).toFixed(1)} points. ${onlyA.length} are robust only for the first, ${onlyB.length} only for the ` +
      `second; two-sided exact McNemar p = ${chance(p)}.`;
    byId("sentence").dataset.p = p;
    sides.forEach((side, i) => {
      const letter = "ab"[i];
      const link = byId(`name-${letter}`);
      link.textContent = side.entry.model;
      link.href = side.entry.page;
      for (const span of document.querySelectorAll(`.is-${letter}`)) span.textContent = side.entry.model;
    });
    byId("list-a").textContent = onlyA.join(", ") || "none";
    byId("list-b").textContent = onlyB.join(", ") || "none";
    shown = { n, sides, columns: 0 };
    draw();
  }

  const NS = "http://www.w3.org/2000/svg";
  // Shape tells as much as colour: a full square, its lower half, a small one.
  const SHAPES = {
    robust: (x, y, s) => `M${x} ${y}h${s}v${s}h-${s}z`,
    fooled: (x, y, s) => `M${x} ${y + 0.6 * s}h${s}v${0.4 * s}h-${s}z`,
    wrong: (x, y, s) => `M${x + 0.3 * s} ${y + 0.6 * s}h${0.4 * s}v${0.4 * s}h-${0.4 * s}z`,
  };

  const kind = (side, i) => (side.robust[i] ? "robust" : side.clean[i] ? "fooled" : "wrong");
  const WORDS = { robust: "is robust", fooled: "is fooled", wrong: "is wrong already clean" };

  function draw() {
    if (!shown) return;
    const { n, sides } = shown;
    const pitch = n <= 300 ? 18 : n <= 1000 ? 13 : n <= 4000 ? 9 : 5;
    const size = pitch - (pitch > 9 ? 4 : 2);
    const room = Math.floor(byId("strips").clientWidth / pitch);
    const columns = Math.max(1, room >= 20 ? room - (room % 10) : room);
    if (columns === shown.columns) return;
    Object.assign(shown, { columns, pitch });
    const height = Math.ceil(n / columns) * pitch;
    sides.forEach((side, s) => {
      const strip = byId(`strip-${"ab"[s]}`);
      const paths = { robust: "", fooled: "", wrong: "", differs: "" };
      for (let i = 0; i < n; i++) {
        const [x, y] = [(i % columns) * pitch, Math.floor(i / columns) * pitch];
        paths[kind(side, i)] += SHAPES[kind(side, i)](x + 1, y + 1, size);
        if (side.robust[i] !== sides[1 - s].robust[i]) paths.differs += `M${x + 1} ${y + pitch - 1}h${size}`;
      }
      strip.setAttribute("width", columns * pitch);
      strip.setAttribute("height", height);
      strip.setAttribute("aria-label", `${side.entry.model}: ${side.robust.filter(Boolean).length} of ${n} robust`);
      strip.replaceChildren(
        ...Object.entries(paths).map(([name, d]) => {
          const path = document.createElementNS(NS, "path");
          path.setAttribute("class", name);
          path.setAttribute("d", d);
          return path;
        }),
      );
    });
  }

  function point(event) {
    const box = event.currentTarget.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left) / shown.pitch);
    const i = Math.floor((event.clientY - box.top) / shown.pitch) * shown.columns + column;
    if (column < 0 || column >= shown.columns || i < 0 || i >= shown.n) return;
    const told = shown.sides.map((side) => `${side.entry.model} ${WORDS[kind(side, i)]}`);
    byId("pointed").textContent = `Example ${i}: ${told.join("; ")}.`;
  }

  if (contests.length === 0) {
    trouble("There is no board with two entries yet.");
    form.hidden = true;
    return;
  }
  fill(boards, contests.map((contest) => [contest.name, contest.title]));
  boards.addEventListener("input", () => {
    candidates();
    right.selectedIndex = 1;
    write();
    show();
  });
  for (const select of [left, right]) {
    select.addEventListener("input", () => {
      write();
      show();
    });
  }
  byId("exchange").addEventListener("click", () => {
    [left.value, right.value] = [right.value, left.value];
    write();
    show();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const letter of "ab") byId(`strip-${letter}`).addEventListener("pointermove", point);
  for (const letter of "ab") byId(`strip-${letter}`).addEventListener("pointerdown", point);
  new ResizeObserver(draw).observe(byId("strips"));
  window.addEventListener("hashchange", read);
  read();
})();
