#![allow(missing_docs)]
use burn::module::{Module, Param, ParamId};
use burn::tensor::{Device, Tensor, FloatDType};
use tpo_core::weights::*;
#[derive(Module, Debug)] struct M { w: Vec<Param<Tensor<2>>> }
fn stat(k:&str)->f64{ let s=std::fs::read_to_string("/proc/self/status").unwrap(); s.lines().find(|l|l.starts_with(k)).unwrap().split_whitespace().nth(1).unwrap().parse::<f64>().unwrap()/1024.0}
fn main(){
  let a:Vec<String>=std::env::args().collect();
  let (n,r,c):(usize,usize,usize)=(a[2].parse().unwrap(),a[3].parse().unwrap(),a[4].parse().unwrap());
  let dir=std::path::Path::new("/tmp/wmeasure").join(format!("{n}_{r}_{c}"));
  let dev=Device::flex();
  let new=||M{w:(0..n).map(|_|Param::uninitialized(ParamId::new(), move |d,_|Tensor::ones([r,c],d), dev.clone(), true,[r,c].into())).collect()};
  if a[1]=="save" { let m=new(); let o=SaveOptions{overwrite:true,dtype:DtypePolicy::Cast(FloatDType::BF16),max_shard_bytes:100_000_000,..Default::default()}; let t=std::time::Instant::now(); let rep=save_module(&m,&KeyRules::new(),&dir,&o).unwrap(); println!("save {} files {} MB {:?} peak {:.0} anon {:.0}",rep.files.len(),rep.bytes/1_000_000,t.elapsed(),stat("VmHWM"),stat("RssAnon")); return; }
  let o=LoadOptions{access: if a[1].starts_with("map"){Access::MemoryMap}else{Access::Read}, dtype: if a[1].ends_with("32"){DtypePolicy::Cast(FloatDType::F32)}else{DtypePolicy::Keep},..Default::default()};
  let b=(stat("RssAnon"),stat("RssFile"));
  let t=std::time::Instant::now(); let ck=Checkpoint::open(&dir).unwrap(); let t1=t.elapsed();
  let (m,rep)=load_module(new(),&ck,&KeyRules::new(),&o).unwrap();
  println!("{} open {:?} load {:?} MB {} anon +{:.0} file +{:.0} peak {:.0} cast {}",a[1],t1,t.elapsed()-t1,rep.bytes()/1_000_000,stat("RssAnon")-b.0,stat("RssFile")-b.1,stat("VmHWM"),rep.cast.len());
  drop(m);
}
