// Filter the scoreboard by paper, table and verdict; scoreboard.html#KEY opens the rows of a paper.
addEventListener("DOMContentLoaded", () => {
  const board = document.querySelector(".scoreboard");
  if (!board) return;
  const [paper, table, verdict] = document.querySelectorAll(".filters select");
  const groups = [...board.tBodies];
  const offerTables = () => {
    const names = groups.filter((g) => !paper.value || g.dataset.paper === paper.value);
    const options = [...new Set(names.map((g) => g.dataset.table))];
    table.replaceChildren(table.options[0], ...options.map((name) => new Option(name)));
    table.value = "";
  };
  const show = () => {
    for (const group of groups) {
      const meant = (!paper.value || group.dataset.paper === paper.value)
        && (!table.value || group.dataset.table === table.value);
      let left = 0;
      for (const row of group.querySelectorAll("tr[data-verdict]")) {
        row.hidden = Boolean(verdict.value) && row.dataset.verdict !== verdict.value;
        left += !row.hidden;
      }
      group.hidden = !meant || !left;
    }
  };
  const start = () => {
    const key = location.hash.slice(1);
    if ([...paper.options].some((option) => option.value === key)) paper.value = key;
    offerTables();
    show();
  };
  paper.addEventListener("change", () => { offerTables(); show(); });
  for (const choice of [table, verdict]) choice.addEventListener("change", show);
  addEventListener("hashchange", start);
  start();
});
