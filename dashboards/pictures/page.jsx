// Draws one dashboard from its JSON and a Prometheus, with Grafana's own components: TimeSeries, BigValue, BarGauge,
// PanelChrome. Not Grafana: the page, the queries and the heat map are stand-ins.
import React from 'react';
import { createRoot } from 'react-dom/client';
import { FieldType, ThemeContext, createTheme, dateTime, formattedValueToString, getDisplayProcessor, toDataFrame } from '@grafana/data';
import { BarGauge, BigValue, GlobalStyles, PanelChrome, PortalContainer, TimeSeries } from '@grafana/ui';
import 'uplot/dist/uPlot.min.css';
import board from 'board';

const asked = new URLSearchParams(location.search);
const fromS = Number(asked.get('from'));
const toS = Number(asked.get('to'));
const WIDTH = Number(asked.get('width')) - 16;
const ROW_HEIGHT = 30;
const stepS = Math.max(2, Math.round((toS - fromS) / 120));
const theme = createTheme({ colors: { mode: 'dark' } });

async function ask(path, query) {
  const answer = await (await fetch(`${asked.get('prometheus')}/api/v1/${path}?${new URLSearchParams(query)}`)).json();
  if (answer.status !== 'success') throw new Error(`${answer.error}: ${JSON.stringify(query)}`);
  return answer.data;
}

const substituted = (expr) =>
  expr
    .replaceAll('$__rate_interval', '45s')
    .replaceAll('$__range', `${Math.round(toS - fromS)}s`)
    .replaceAll('$instance', '.+');

const named = (legend, labels) => legend.replace(/{{\s*(\w+)\s*}}/g, (_, name) => labels[name] ?? '').trim();

async function framesOf(panel) {
  const { defaults } = panel.fieldConfig;
  const isLine = panel.type === 'timeseries';
  const frames = [];
  for (const target of panel.targets) {
    const expr = substituted(target.expr);
    const data = target.instant
      ? await ask('query', { query: expr, time: toS })
      : await ask('query_range', { query: expr, start: fromS, end: toS, step: stepS });
    for (const series of data.result) {
      const points = series.values ?? [series.value];
      const name = named(target.legendFormat, series.metric);
      const value = {
        name: 'Value',
        type: FieldType.number,
        labels: series.metric,
        values: points.map(([, text]) => (text === 'NaN' ? null : Number(text))),
        config: {
          color: { mode: isLine ? 'palette-classic' : 'thresholds' },
          ...defaults,
          displayNameFromDS: name,
          custom: { drawStyle: 'line', showPoints: 'never', axisPlacement: 'auto', ...defaults.custom },
        },
        state: { seriesIndex: frames.length, displayName: name },
      };
      const time = {
        name: 'Time',
        type: FieldType.time,
        values: points.map(([second]) => second * 1e3),
        config: { interval: stepS * 1e3 },
      };
      const frame = toDataFrame({ refId: target.refId, name, fields: [time, value] });
      for (const field of frame.fields) field.display = getDisplayProcessor({ field, theme, timeZone: 'utc' });
      frame.fields[1].state = value.state;
      frames.push(frame);
    }
  }
  return frames;
}

const lastOf = (frame) => frame.fields[1].values.findLast((value) => value !== null) ?? null;

const shown = (frame) => frame.fields[1].display(lastOf(frame));

function Bars({ frames, width, height }) {
  const rowHeight = Math.min(44, Math.max(18, height / Math.max(1, frames.length)));
  const rows = frames.slice(0, Math.floor(height / rowHeight));
  const max = Math.max(...rows.map(lastOf));
  return rows.map((frame) => (
    <BarGauge
      key={frame.name}
      value={{ ...shown(frame), title: frame.name }}
      field={{ ...frame.fields[1].config, min: 0, max }}
      display={frame.fields[1].display}
      alignmentFactors={{ title: 'VoiceRecognizer inference', text: '00.00 min' }}
      displayMode="gradient"
      namePlacement="left"
      orientation="horizontal"
      width={width}
      height={rowHeight - 4}
      itemSpacing={4}
      theme={theme}
    />
  ));
}

// Cumulative buckets, as Prometheus gives them, in the colours and with the exponent that the board asks for.
function HeatMap({ frames, width, height }) {
  const draw = (canvas) => {
    if (!canvas) return;
    const bound = (frame) => Number(frame.name.replace('+Inf', 'Infinity'));
    const sorted = [...frames].sort((a, b) => bound(a) - bound(b));
    const at = sorted.map((frame) => new Map(frame.fields[0].values.map((t, i) => [t, frame.fields[1].values[i] ?? 0])));
    const times = [...new Set(at.flatMap((values) => [...values.keys()]))].sort();
    const cells = at.map((values, row) => times.map((t) => Math.max(0, (values.get(t) ?? 0) - (row ? at[row - 1].get(t) ?? 0 : 0))));
    const most = Math.max(...cells.flat());
    const rows = sorted.map((_, row) => row).filter((row) => cells[row].some((cell) => cell > 0));
    const [low, high] = [Math.max(0, rows[0] - 1), Math.min(sorted.length - 1, rows.at(-1) + 1)];
    const pen = canvas.getContext('2d');
    const left = 48;
    const cellHeight = (height - 18) / (high - low + 1);
    const cellWidth = (width - left) / times.length;
    pen.font = '11px sans-serif';
    for (let row = low; row <= high; row += 1) {
      const y = (high - row) * cellHeight;
      times.forEach((_, column) => {
        const share = (cells[row][column] / most) ** 0.5;
        if (!share) return;
        pen.fillStyle = `hsl(${16 + 22 * share} 90% ${20 + 55 * share}%)`;
        pen.fillRect(left + column * cellWidth, y + 1, cellWidth - 1, cellHeight - 1);
      });
      pen.fillStyle = theme.colors.text.secondary;
      if (cellHeight > 10 || row % 2) pen.fillText(formattedValueToString(sorted[row].fields[1].display(bound(sorted[row]))), 2, y + 9);
    }
    times.forEach((t, column) => {
      if (column % Math.ceil(times.length / 5) === 0) pen.fillText(dateTime(t).utc().format('HH:mm:ss'), left + column * cellWidth, height - 4);
    });
  };
  return <canvas ref={draw} width={width} height={height} />;
}

function Drawn({ panel, frames, width, height }) {
  if (!frames.length) return <div style={{ color: theme.colors.text.secondary, paddingTop: height / 2 - 10, textAlign: 'center' }}>No data</div>;
  if (panel.type === 'stat') // for a narrower font than this page has
    return <BigValue value={shown(frames[0])} width={0.85 * width} height={height} theme={theme} colorMode="value" graphMode="none" justifyMode="auto" textMode="auto" />;
  if (panel.type === 'bargauge') return <Bars frames={frames} width={width} height={height} />;
  if (panel.type === 'heatmap') return <HeatMap frames={frames} width={width} height={height} />;
  const range = { from: dateTime(fromS * 1e3), to: dateTime(toS * 1e3) };
  const legend = { ...panel.options.legend, isVisible: true, showLegend: true };
  return (
    <TimeSeries frames={frames} timeRange={{ ...range, raw: range }} timeZone="utc" width={width} height={height} legend={legend}
      options={panel.options} replaceVariables={(text) => text} tweakScale={(scale) => scale} tweakAxis={(axis) => axis} />
  );
}

function Panel({ panel, frames }) {
  const column = WIDTH / 24;
  const { x, y, w, h } = panel.gridPos;
  const place = { position: 'absolute', left: x * column, top: y * ROW_HEIGHT };
  if (panel.type === 'row') return <h5 style={{ ...place, paddingTop: 6 }}>{panel.title}</h5>;
  return (
    <div style={place}>
      <PanelChrome title={panel.title} description={panel.description} width={w * column - 6} height={h * ROW_HEIGHT - 6}>
        {(width, height) => <Drawn panel={panel} frames={frames} width={width} height={height} />}
      </PanelChrome>
    </div>
  );
}

async function draw() {
  const frames = await Promise.all(board.panels.map((panel) => (panel.type === 'row' ? [] : framesOf(panel))));
  Object.assign(document.body.style, {
    background: theme.colors.background.canvas, color: theme.colors.text.primary, fontFamily: 'DejaVu Sans, sans-serif', margin: '8px',
  });
  createRoot(document.getElementById('root')).render(
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <PortalContainer />
      <h4 style={{ margin: '4px 0 2px' }}>{board.title}</h4>
      <div style={{ fontSize: 12, color: theme.colors.text.secondary, marginBottom: 4 }}>{asked.get('note')}</div>
      <div style={{ position: 'relative' }}>
        {board.panels.map((panel, i) => <Panel key={panel.id} panel={panel} frames={frames[i]} />)}
      </div>
    </ThemeContext.Provider>,
  );
}

draw().catch((error) => { document.body.innerText = `FAILED ${error.stack}`; });
