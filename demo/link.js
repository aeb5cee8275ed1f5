// Write what the page holds into its address. The order of the arguments is that of the page's `held`.
(question, example, shown, budget, fresh, temperature, seed, repeats, ...columns) => {
  if (!window.longtailFollowed) return [];
  const methods = columns.slice(0, columns.length / 2), settings = columns.slice(columns.length / 2);
  const now = new URLSearchParams(), was = new URLSearchParams(location.search);
  for (const kept of ['tab', 'view', '__theme', 'hide', 'veil', 'log']) if (was.has(kept)) now.set(kept, was.get(kept));
  if (example) now.set('example', example);
  if (question) now.set('q', question);
  shown.forEach((on, i) => on && now.append('m', [methods[i], ...Object.entries(settings[i]?.[methods[i]] ?? {})
    .map(([name, value]) => `${name}=${typeof value === 'boolean' ? (value ? 'True' : 'False') : value}`)].join(':')));
  const numbers = {budget: [budget, 0], new: [fresh, 128], temperature: [temperature, 0], seed: [seed, 0], repeats: [repeats, 5]};
  for (const [name, [value, usual]] of Object.entries(numbers)) if (value !== null && value !== usual) now.set(name, value);
  history.replaceState(history.state, '', `?${now}`);
  return [];
}
