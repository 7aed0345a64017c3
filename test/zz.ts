import fc from "fast-check";
import { anyScript, anyValidity } from "./lifetimeacts.ts";
import { DAY } from "./lifetimecluster.ts";
import { live } from "./lifetimemodel.ts";
const YEAR=365*DAY;
// explore: sample, run, collect classes of failures without shrinking
const n=Number(process.argv[2]??40), seed=Number(process.argv[3]??1);
const samples=fc.sample(anyScript(anyValidity([20*DAY,5*YEAR],[4*DAY,YEAR]),YEAR/2,Number(process.argv[4]??60)),{numRuns:n,seed});
const classes=new Map<string,[number,any,string]>(); let visits=0; const tally=new Map<string,number>(); let ok=0; const t0=performance.now();
for(const s of samples){ try{const l=live(s,10*YEAR); ok++; visits+=l.visits; for(const[k,v]of l.tally)tally.set(k,(tally.get(k)??0)+v)}catch(e){const m=(e as Error).message.split("\n")[0]!; const k=m.replace(/\d{4}-\S+/g,"T").replace(/[0-9a-f]{8}/g,"G").replace(/apiserver-\d+|etcd-\d+/g,"P").replace(/api\d/g,"api").slice(0,160); const c=classes.get(k); if(!c||JSON.stringify(s).length<JSON.stringify(c[1]).length)classes.set(k,[(c?.[0]??0)+1,s,(e as Error).message]); else c[0]++;} }
console.log({ok,n,visits,ms:performance.now()-t0},Object.fromEntries(tally));
for(const[k,[c,,]]of classes)console.log(c,k);
const w=process.argv[5]; for(const[k,c]of classes)if(!w||k.includes(w)){console.log(c[2].split("\n").slice(0,1).join("\n").slice(0,1800));console.log(c[2].split("\n").slice(-14).map(l=>l.slice(0,330)).join("\n"));}
