//! The time of one choice in memory, by the size of the fleet: see `measure`.
//!
//! ```sh
//! cargo bench --bench choice
//! ```

mod measure;

fn main() {
    println!("microseconds for one decision, medians of {} rounds\n", measure::ROUNDS);
    println!("{:<58} {:>9} {:>9} {:>9} {:>12}", "", "1,000", "10,000", "100,000", "last / first");
    for row in measure::rows() {
        let [first, middle, last] = row.microseconds;
        println!("{:<58} {first:>9.2} {middle:>9.2} {last:>9.2} {:>12.2}", row.name, last / first);
    }
}
