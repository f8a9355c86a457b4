//! The program itself, on a state directory made by hand and on sockets that speak the programs' own HTTP.

mod mesh;
mod objects;
mod programs;
