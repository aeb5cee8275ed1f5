const place = element.querySelector('.plot');
async function draw() {
  if (!props.value) return place.replaceChildren();
  const Plotly = await plotly(), first = !place.data;
  const {data, layout} = JSON.parse(props.value, (_, it) => typeof it === 'string' ? longtailSpoken(it) : it);
  await Plotly.react(place, data, layout, CONFIG);
  if (first) place.on('plotly_click', event => {
    const key = event.points.find(point => point.customdata !== undefined)?.customdata;
    if (key !== undefined) trigger('point', {key});
  });
}
draw();
watch('value', draw);
