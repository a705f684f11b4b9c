(() => {
  const rows = JSON.parse(document.getElementById("rows").textContent);
  const table = document.getElementById("entries");
  const body = table.tBodies[0];
  const drawn = [...body.rows];
  const form = document.getElementById("filters");
  const more = document.getElementById("more");
  const heads = [...table.querySelectorAll("th[data-sort]")];
  const sections = [...document.querySelectorAll("section.board")];
  const places = sections.map((section) => section.dataset.board);
  const columns = {
    rank: (a, b) => a.order - b.order,
    model: (a, b) => (a.model < b.model ? -1 : Number(a.model > b.model)),
    worst: (a, b) => a.worst - b.worst,
    clean: (a, b) => a.clean - b.clean,
    n: (a, b) => a.n - b.n,
    verdict: (a, b) => (a.verdict < b.verdict ? -1 : Number(a.verdict > b.verdict)),
    rules: (a, b) => (a.rules.join() < b.rules.join() ? -1 : Number(a.rules.join() > b.rules.join())),
    board: (a, b) => places.indexOf(a.board) - places.indexOf(b.board),
  };
  // What a person sees at once; a browser takes a while to lay out many hundreds of rows.
  const FEW = 100;
  // Numbers are looked at from the best down, names from the first on.
  const first = (column) => (["worst", "clean", "n"].includes(column) ? "descending" : "ascending");
  // Ranks hold within a board, so one board is shown unless all are asked for.
  const usual = { board: places[0] ?? "", dataset: "", rule: "", verdict: "", q: "", sort: "rank", dir: "ascending", rows: "" };
  let state = { ...usual };

  const fits = (row, words) =>
    (state.board === "" || row.board === state.board) &&
    (state.dataset === "" || row.dataset === state.dataset) &&
    (state.rule === "" || row.rules.includes(state.rule)) &&
    (state.verdict === "" || row.verdict === state.verdict) &&
    words.every((word) => row.words.includes(word));

  function show() {
    const words = state.q.toLowerCase().split(/\s+/).filter(Boolean);
    const chosen = rows.map((_, i) => i).filter((i) => fits(rows[i], words));
    const sign = state.dir === "descending" ? -1 : 1;
    const compare = columns[state.sort];
    // Ranks of different boards are not to be compared.
    const apart = (i, j) => (state.sort === "rank" ? columns.board(rows[i], rows[j]) : 0);
    chosen.sort((i, j) => apart(i, j) || sign * compare(rows[i], rows[j]) || i - j);
    const seen = state.rows === "all" ? chosen : chosen.slice(0, FEW);
    body.replaceChildren(...seen.map((i) => drawn[i]));
    table.classList.toggle("one-board", state.board !== "");
    for (const section of sections) section.hidden = section.dataset.board !== state.board;
    for (const head of heads) {
      if (head.dataset.sort === state.sort) head.setAttribute("aria-sort", state.dir);
      else head.removeAttribute("aria-sort");
    }
    document.getElementById("count").value = `${chosen.length} of ${rows.length} entries`;
    document.getElementById("nothing").hidden = chosen.length > 0;
    more.textContent = `Show the other ${chosen.length - seen.length}`;
    more.hidden = chosen.length === seen.length;
  }

  function write() {
    const kept = Object.entries(state).map(([name, value]) => [name, value === usual[name] ? "" : value || "all"]);
    fragment.write(Object.fromEntries(kept));
  }

  function read() {
    const asked = fragment.read();
    state = { ...usual };
    for (const name of ["board", "dataset", "rule", "verdict"]) {
      const known = [...form.elements[name].options].map((option) => option.value);
      if (asked[name] === "all") state[name] = "";
      else if (known.includes(asked[name])) state[name] = asked[name];
    }
    if (Object.hasOwn(columns, asked.sort ?? "")) state.sort = asked.sort;
    if (["ascending", "descending"].includes(asked.dir)) state.dir = asked.dir;
    state.q = asked.q ?? "";
    state.rows = asked.rows === "all" ? "all" : "";
    for (const name of ["board", "dataset", "rule", "verdict", "q"]) form.elements[name].value = state[name];
    show();
  }

  function clear() {
    state = { ...usual, sort: state.sort, dir: state.dir, rows: state.rows };
    for (const name of ["board", "dataset", "rule", "verdict", "q"]) form.elements[name].value = state[name];
    write();
    show();
  }

  for (const head of heads) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const column = head.dataset.sort;
      const turned = state.dir === "ascending" ? "descending" : "ascending";
      state.dir = state.sort === column ? turned : first(column);
      state.sort = column;
      write();
      show();
    });
  }
  form.addEventListener("input", (event) => {
    state[event.target.name] = event.target.value;
    // A data set that the board does not use would leave nothing to see.
    const alien = rows.every((row) => row.board !== state.board || row.dataset !== state.dataset);
    if (state.board && state.dataset && alien) {
      const given = event.target.name === "board" ? "dataset" : "board";
      state[given] = form.elements[given].value = "";
    }
    write();
    show();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => {
    event.preventDefault();
    clear();
  });
  document.getElementById("clear").addEventListener("click", clear);
  more.addEventListener("click", () => {
    const first = body.rows.length;
    state.rows = "all";
    write();
    show();
    body.rows[first].querySelector("a").focus();
  });
  window.addEventListener("hashchange", read);
  form.hidden = false;
  read();
})();
