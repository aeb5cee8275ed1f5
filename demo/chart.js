// A Plotly figure in an HTML block. Plotly comes from the server, once, when the first figure is there.
const plotly = () => window.longtailPlotly ??= new Promise((done, failed) => {
  const {root, api_prefix} = window.gradio_config, script = document.createElement('script');
  script.src = `${root}${api_prefix}/file=PLOTLY`;
  script.onload = () => done(window.Plotly);
  script.onerror = () => failed(new Error('Plotly could not be fetched'));
  document.head.append(script);
});
const CONFIG = {displayModeBar: false, responsive: true};
