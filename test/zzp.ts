import { live } from "./lifetimemodel.ts";
const s={setting:{seed:5,proxies:"gateway",replicas:2,apiServers:[{named:true,permission:"restart",replicas:2},{named:false,permission:"restart",replicas:1}],validity:{signing:30*86400000,serving:4*86400000,client:4*86400000}},acts:[]} as any;
let t=performance.now(); try{const l=live(s,3650*86400000);console.log(l.visits,l.tally,l.writes)}catch(e){console.log((e as Error).message.slice(0,3000))} console.log(performance.now()-t);
