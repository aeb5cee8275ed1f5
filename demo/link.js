// Write what the page holds into its address. The order of the arguments is that of the page's `held`.
(question, example, shown, ...rest) => {
  if (!window.longtailFollowed) return [];
  const usual = FIELDS, fields = rest.slice(0, usual.length), columns = rest.slice(usual.length);
  const methods = columns.slice(0, columns.length / 2), settings = columns.slice(columns.length / 2);
  const now = new URLSearchParams(), was = new URLSearchParams(location.search);
  for (const kept of ['tab', 'view', '__theme', 'hide', 'veil', 'log', 'recorded']) if (was.has(kept)) now.set(kept, was.get(kept));
  if (example) now.set('example', example);
  if (question) now.set('q', question);
  shown.forEach((on, i) => on && now.append('m', [methods[i], ...Object.entries(settings[i]?.[methods[i]] ?? {})
    .map(([name, value]) => `${name}=${typeof value === 'boolean' ? (value ? 'True' : 'False') : value}`)].join(':')));
  usual.forEach(([name, value], i) => {
    if (fields[i] !== null && `${fields[i]}` !== `${value}`) now.set(name, fields[i]);
  });
  history.replaceState(history.state, '', `?${now}`);
  return [];
}
