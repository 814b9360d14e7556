declare module 'd3-scale';
declare module '*.md' {
  const text: string;
  export default text;
}
