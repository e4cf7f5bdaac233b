//! The guest's pace: it runs as fast as its checkpoints are carried away, so that its output is released in time.
//!
//! A checkpoint takes as long to its ack as the bytes in flight with it take on their way. So these bytes have a
//! bound, the *window*: the bytes that link and backup carry within the latency wanted. The window is found by
//! measuring, as by a TCP that goes by delay: a late ack shrinks it, an ack in time lets it grow where it was in use.
//! While the window has room the guest runs at full speed. Without room it stands still until an ack comes, but for no
//! more of its time than the declared least speed allows. What it writes beyond that makes the hold grow, and after a
//! while of this the pair is overloaded.
//!
//! Nothing here reads a clock. Captures, encodings and acks are told with their times in microseconds.

use crate::role::Micros;
use std::collections::VecDeque;
use std::time::Duration;

/// The declared service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    /// Output is released within this time.
    pub hold_us_max: u64,
    /// The guest is not slowed below this part of its speed.
    pub speed_pct_min: u64,
}

/// Of the bound on the hold, the part that a checkpoint may take from its capture to its ack. The rest is for the frame
/// that waits for its epoch's end, and for jitter.
const LATENCY_PCT: u64 = 45;
/// Room for a guest that writes hardly anything, on any link.
const WINDOW_MIN: u64 = 16 << 10;
/// Enough that a link of 1 Gbit/s is full, and few enough that a slow one shows itself soon.
const WINDOW_FIRST: u64 = 1 << 20;
/// A guest that is let run runs for so long at least, where that is not much of the window. Stopping it costs time too.
const STINT_US: std::ops::RangeInclusive<u64> = 100..=500;
/// No checkpoint without any page is longer.
const LEAST_FIRST: u64 = 2 << 10;
/// What is carried is measured over about this time on the way.
const CARRIED_SPAN_US: u64 = 100_000;
/// The speed shown is that of about this time.
const SPEED_SPAN_US: u64 = 500_000;
/// Of the latency, the part after which the estimate of a checkpoint that is not encoded yet is not relied on: it is a
/// guess from what the guest wrote before.
const ESTIMATE_PCT: u64 = 10;
/// The hold may grow beyond its bound for so long: links hiccup, and a window takes some acks to be found.
const OVERLOAD_US: u64 = 10_000_000;

/// What the guest does next. A time says when to ask again, if no ack comes before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It runs.
    Run(Micros),
    /// It stands still.
    Stand(Micros),
    /// Its epoch ends.
    End,
}

/// A checkpoint in flight.
#[derive(Clone, Copy, Debug)]
struct Flying {
    epoch: u64,
    /// When the epoch began, and when it was captured.
    began: Micros,
    at: Micros,
    /// Bytes that it is long; an estimate until it is encoded.
    bytes: u64,
    /// Bytes captured, until it is encoded.
    raw: Option<u64>,
    /// Bytes in flight at its capture, its own among them.
    with_it: u64,
    /// Time that the guest ran for it.
    ran_us: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Flow {
    service: Service,
    latency_us: u64,
    window: u64,
    window_max: u64,
    /// The shortest latency seen: no slower guest makes it shorter.
    base_us: u64,
    flying: VecDeque<Flying>,
    /// The first checkpoint is acked. That takes more than its way: the backup tries whether it can go on from it.
    is_tried: bool,
    captured_at: Option<Micros>,
    acked_at: Micros,
    /// Bytes acked of late, and the time in which they were on their way.
    carried: (u64, u64),
    /// Bytes of a checkpoint for each byte captured.
    ratio: f64,
    /// Bytes of the smallest checkpoint: what the guest writes comes on top.
    least: u64,
    /// Bytes of checkpoint that the guest makes in a microsecond.
    rate: f64,
    /// Bytes of memory that it dirties in a microsecond, by the last capture.
    raw_rate: f64,
    gait: Gait,
    late_since: Option<Micros>,
}

/// How the guest has run and stood still.
#[derive(Debug, Default)]
struct Gait {
    running_since: Option<Micros>,
    standing_since: Option<Micros>,
    /// In the open epoch, up to the last stop.
    ran_us: u64,
    /// Since it last stood still, up to the last stop.
    stint_us: u64,
    recently_ran_us: u64,
    recently_stood_us: u64,
}

impl Gait {
    fn run(&mut self, now: Micros) {
        if let Some(since) = self.standing_since.take() {
            self.recently_stood_us += now.saturating_sub(since);
            self.stint_us = 0;
        }
        self.running_since.get_or_insert(now);
        if self.recently_ran_us + self.recently_stood_us > SPEED_SPAN_US {
            self.recently_ran_us /= 2;
            self.recently_stood_us /= 2;
        }
    }

    fn stop(&mut self, now: Micros) {
        if let Some(since) = self.running_since.take() {
            let ran_us = now.saturating_sub(since);
            self.ran_us += ran_us;
            self.stint_us += ran_us;
            self.recently_ran_us += ran_us;
        }
    }

    fn running_us(&self, now: Micros) -> u64 {
        self.running_since.map_or(0, |since| now.saturating_sub(since))
    }
}

impl Flow {
    /// Nothing is in flight; never more than `window_max` bytes will be.
    pub fn new(service: Service, window_max: u64) -> Self {
        Self {
            service,
            latency_us: service.hold_us_max * LATENCY_PCT / 100,
            window: WINDOW_FIRST.min(window_max),
            window_max,
            base_us: u64::MAX,
            flying: VecDeque::new(),
            is_tried: false,
            captured_at: None,
            acked_at: 0,
            carried: (0, 0),
            ratio: 1.0,
            least: LEAST_FIRST,
            rate: 0.0,
            raw_rate: 0.0,
            gait: Gait::default(),
            late_since: None,
        }
    }

    /// Another service is declared.
    pub fn declare(&mut self, service: Service) {
        self.service = service;
        self.latency_us = service.hold_us_max * LATENCY_PCT / 100;
    }

    /// The guest runs from now on.
    pub fn runs(&mut self, now: Micros) {
        self.gait.run(now);
    }

    /// The guest has stopped, for a capture or to stand still.
    pub fn stops(&mut self, now: Micros) {
        self.gait.stop(now);
    }

    /// The guest, which has stopped, stands still because there is no room.
    pub fn stands(&mut self, now: Micros) {
        self.gait.standing_since.get_or_insert(now);
    }

    /// The open epoch is captured: so many bytes of pages and state.
    pub fn captured(&mut self, now: Micros, epoch: u64, raw_bytes: u64) {
        let bytes = (raw_bytes as f64 * self.ratio) as u64;
        let with_it = self.counted().map(|flying| flying.bytes).sum::<u64>() + bytes;
        let ran_us = std::mem::take(&mut self.gait.ran_us);
        if ran_us >= *STINT_US.start() {
            self.raw_rate = raw_bytes as f64 / ran_us as f64;
        }
        let began = self.captured_at.replace(now).unwrap_or(now);
        self.flying.push_back(Flying { epoch, began, at: now, bytes, raw: Some(raw_bytes), with_it, ran_us });
    }

    /// It is encoded: `bytes` of the `raw_bytes` that were captured.
    pub fn encoded(&mut self, epoch: u64, raw_bytes: u64, bytes: u64) {
        self.ratio = bytes as f64 / raw_bytes.max(1) as f64;
        // The first checkpoint is in nobody's bytes in flight until it is acked.
        let is_counted = self.is_tried || self.flying.front().is_some_and(|first| first.epoch != epoch);
        let mut behind = self.flying.iter_mut().skip_while(|flying| flying.epoch != epoch);
        self.least = self.least.min(bytes);
        let Some(this) = behind.next() else { return };
        this.raw = None;
        let before = std::mem::replace(&mut this.bytes, bytes);
        this.with_it = this.with_it + bytes - before;
        let ran_us = this.ran_us;
        for later in behind.filter(|_| is_counted) {
            later.with_it = later.with_it + bytes - before;
        }
        // A pairing's first checkpoint, and one of a guest that hardly ran, say nothing of its rate.
        if ran_us >= *STINT_US.start() {
            let rate = bytes.saturating_sub(self.least) as f64 / ran_us as f64;
            // A guest that begins to write is believed at once, one that ceases after some epochs.
            self.rate = rate.max(self.rate * 0.75 + rate * 0.25);
        }
    }

    /// So many bytes went out ahead of it: changes of disks, which are no part of what its pages come to.
    pub fn ahead(&mut self, epoch: u64, bytes: u64) {
        let mut behind = self.flying.iter_mut().skip_while(|flying| flying.epoch != epoch);
        if let Some(this) = behind.next() {
            this.bytes += bytes;
            this.with_it += bytes;
        }
        behind.for_each(|later| later.with_it += bytes);
    }

    /// Bytes that may be in flight for their acks to come within the latency wanted.
    pub fn window(&self) -> u64 {
        self.window
    }

    /// The backup has sealed everything up to `epoch`.
    pub fn acked(&mut self, now: Micros, epoch: u64) {
        let Some(&Flying { at: first_at, .. }) = self.flying.front() else { return };
        let mut newest = None;
        let mut bytes = 0;
        while self.flying.front().is_some_and(|flying| flying.epoch <= epoch) {
            newest = self.flying.pop_front();
            bytes += newest.map_or(0, |flying| flying.bytes);
        }
        let Some(Flying { began, at, with_it, .. }) = newest else { return };
        let took_us = now.saturating_sub(at);
        let since = std::mem::replace(&mut self.acked_at, now);
        if !std::mem::replace(&mut self.is_tried, true) {
            return;
        }
        let base_us = if self.base_us == u64::MAX { 0 } else { self.base_us };
        self.base_us = self.base_us.min(took_us);
        let alone_us = now.saturating_sub(first_at).saturating_sub(base_us);
        let us = alone_us.min(now.saturating_sub(since)).max(1);
        self.carried = (self.carried.0 + bytes, self.carried.1 + us);
        if self.carried.1 > CARRIED_SPAN_US {
            self.carried = (self.carried.0 / 2, self.carried.1 / 2);
        }
        let wanted_us = self.latency_us.saturating_sub(self.base_us).max(self.latency_us / 4);
        let queued_us = took_us - self.base_us;
        let carried = (self.carried.0 as f64 * wanted_us as f64 / self.carried.1 as f64) as u64;
        if queued_us > wanted_us {
            // What was far from filling the window was late for another reason.
            let small = if with_it < self.window / 4 { with_it * 4 } else { 0 };
            self.window = carried.max(self.window / 4).max(small).max(WINDOW_MIN);
        } else if with_it > self.window / 2 {
            self.window = carried.clamp(self.window, self.window * 2).min(self.window_max);
        }
        if now.saturating_sub(began) <= self.service.hold_us_max {
            self.late_since = None;
        }
    }

    /// What the guest does next in an epoch that is due at `due`. Without `may_end`, it cannot end for another reason.
    pub fn turn(&self, now: Micros, due: Micros, may_end: bool) -> Turn {
        let in_flight = self.bytes_in_flight(now);
        let open = self.open_bytes(now);
        // Behind so much that is in flight already a checkpoint only waits: the epoch takes what the guest writes in.
        let crowded = in_flight > self.window / 2 && in_flight + open > self.window * 5 / 4;
        let may_end = may_end && !crowded;
        if may_end && (now >= due || open >= self.window / 2) {
            return Turn::End;
        }
        let credit = self.window.saturating_sub(in_flight + open);
        match self.gait.running_since {
            None => match self.stands_until(now, in_flight + open, credit) {
                Some(until) => Turn::Stand(until),
                None => Turn::Run(now),
            },
            Some(_) => {
                let stint_us = self.gait.stint_us + self.gait.running_us(now);
                let left_us = self.time_for(credit).max(self.stint_us().saturating_sub(stint_us));
                if left_us == 0 || in_flight + open > self.window_max {
                    return Turn::Stand(now);
                }
                let ripe_us = self.time_for((self.window / 2).saturating_sub(open)).max(1);
                let end_us = if may_end { ripe_us.min(due.saturating_sub(now)) } else { u64::MAX };
                Turn::Run(now.saturating_add(left_us.min(end_us)))
            }
        }
    }

    /// The shortest time for a guest to run between two stand-stills.
    fn stint_us(&self) -> u64 {
        self.time_for(self.window / 8).clamp(*STINT_US.start(), *STINT_US.end())
    }

    /// Until when a guest stands still that has stopped; none if it may run.
    fn stands_until(&self, now: Micros, used: u64, credit: u64) -> Option<Micros> {
        if credit > 0 && self.time_for(credit) >= self.stint_us() {
            return None;
        }
        if used > self.window_max {
            return Some(Micros::MAX);
        }
        let pct = self.service.speed_pct_min;
        let longest_us = self.gait.stint_us.max(1) * (100 - pct) / pct;
        let until = self.gait.standing_since.unwrap_or(now) + longest_us;
        (now < until).then_some(until)
    }

    /// For a guest that is slowed by others: how long what it makes now will wait for what is in flight, and how long
    /// it may.
    pub fn queueing(&self, now: Micros) -> (u64, Duration) {
        let (bytes, us) = self.carried;
        let ahead_us = (self.bytes_in_flight(now) * us).checked_div(bytes).unwrap_or(0);
        // Where no ack comes, nothing is known of what is carried.
        let oldest_us = self.flying.front().map_or(0, |oldest| now.saturating_sub(oldest.at));
        let late_us = if self.is_tried && oldest_us > self.service.hold_us_max { oldest_us } else { 0 };
        (ahead_us.max(late_us), Duration::from_micros(self.latency_us))
    }

    /// Whether the hold has been beyond its bound for a while although the guest runs as slowly as it may.
    pub fn is_overloaded(&mut self, now: Micros) -> bool {
        self.is_overloaded_at(now, self.speed_permille() <= self.service.speed_pct_min * 10 * 5 / 4)
    }

    /// As [`Self::is_overloaded`], for a guest that is slowed by others.
    pub fn is_overloaded_at(&mut self, now: Micros, is_slowest: bool) -> bool {
        let oldest_us = self.flying.front().map_or(0, |oldest| now.saturating_sub(oldest.began));
        if oldest_us > self.service.hold_us_max && is_slowest && self.is_tried {
            self.late_since.get_or_insert(now);
        }
        self.late_since.is_some_and(|since| now.saturating_sub(since) > OVERLOAD_US)
    }

    /// The guest's speed of late, in thousandths.
    pub fn speed_permille(&self) -> u64 {
        let Gait { recently_ran_us: ran, recently_stood_us: stood, .. } = self.gait;
        (ran * 1000).checked_div(ran + stood).unwrap_or(1000)
    }

    /// What is in flight. The first checkpoint takes more than its way, and counts once it is acked.
    fn counted(&self) -> impl Iterator<Item = &Flying> {
        self.flying.iter().skip((!self.is_tried).into())
    }

    /// Whether the encoder is so late that what the guest writes now may be far more than what it wrote before.
    fn is_unsure(&self, now: Micros) -> bool {
        let oldest = self.counted().find(|flying| flying.raw.is_some());
        oldest.is_some_and(|flying| now.saturating_sub(flying.at) > self.latency_us * ESTIMATE_PCT / 100)
    }

    fn bytes_in_flight(&self, now: Micros) -> u64 {
        let unsure = self.is_unsure(now);
        let bytes = |flying: &Flying| flying.raw.filter(|_| unsure).unwrap_or(flying.bytes);
        self.counted().map(bytes).sum()
    }

    /// Bytes that the open epoch has come to, as far as anybody can tell before it is captured.
    fn open_bytes(&self, now: Micros) -> u64 {
        let rate = if self.is_unsure(now) { self.rate.max(self.raw_rate) } else { self.rate };
        (rate * (self.gait.ran_us + self.gait.running_us(now)) as f64) as u64
    }

    /// The time in which the guest writes so many bytes.
    fn time_for(&self, bytes: u64) -> u64 {
        // Saturates; a guest that writes nothing takes for ever.
        (bytes as f64 / self.rate.max(1e-9)) as u64
    }
}

#[cfg(test)]
mod tests;
