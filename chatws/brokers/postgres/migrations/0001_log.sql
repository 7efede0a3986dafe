-- The event history: functions for nodes. docs/adr/0010-postgresql-order.md has the reasons and the proof.
-- Programs that know migration 1 or a later one can work with it.

CREATE TABLE chatws.log (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    epoch text NOT NULL,
    -- the counters of the newest event, where that is no longer in `events`
    place bigint NOT NULL DEFAULT 0,
    log_offset bigint NOT NULL DEFAULT 0,
    total bigint NOT NULL DEFAULT 0
);
COMMENT ON TABLE chatws.log IS 'One row. Written when the log starts anew, and when its newest event is trimmed.';

CREATE TABLE chatws.events (
    place bigint PRIMARY KEY,
    log_offset bigint NOT NULL,
    transient boolean NOT NULL,
    total bigint NOT NULL,
    stamp integer NOT NULL,
    time double precision NOT NULL,
    name text NOT NULL,
    channels text NOT NULL,
    except_user_id text,
    data text NOT NULL
);
COMMENT ON TABLE chatws.events IS 'What was accepted, in the order in which every node tells of it.';
COMMENT ON COLUMN chatws.events.place IS '1, 2, 3 … over all events';
COMMENT ON COLUMN chatws.events.log_offset IS '1, 2, 3 … over those that can be recovered; of a transient one, the last before it';
COMMENT ON COLUMN chatws.events.total IS 'bytes of data of all that could be recovered so far';
COMMENT ON COLUMN chatws.events.stamp IS 'random, the same for what was appended together: tells a log from a restored copy that went another way';
COMMENT ON COLUMN chatws.events.channels IS 'a JSON array of strings';
COMMENT ON COLUMN chatws.events.except_user_id IS 'as JSON: 5 or "ana"';
CREATE UNIQUE INDEX events_by_offset ON chatws.events (log_offset) WHERE NOT transient;
CREATE INDEX events_transient ON chatws.events (place) WHERE transient;

CREATE TABLE chatws.keys (
    key text PRIMARY KEY,
    log_offset bigint NOT NULL,
    time double precision NOT NULL
);
COMMENT ON TABLE chatws.keys IS 'Idempotency keys of the last 10 minutes, each with its first event (0: a transient one).';
CREATE INDEX keys_by_time ON chatws.keys (time);

CREATE TABLE chatws.outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL,
    channels text NOT NULL,
    except_user_id text,
    data text NOT NULL,
    key text,
    transient boolean NOT NULL,
    wakes boolean NOT NULL
);
COMMENT ON TABLE chatws.outbox IS 'What transactions have published, until a node gives it its place in the log.';

CREATE TABLE chatws.waking (
    single boolean PRIMARY KEY DEFAULT true CHECK (single),
    awake_until timestamptz NOT NULL DEFAULT '-infinity'
);
COMMENT ON TABLE chatws.waking IS 'Until then some node looks into the outbox every few milliseconds, and need not be woken.';
INSERT INTO chatws.waking DEFAULT VALUES;

-- Small tables with many changes: look after them often.
ALTER TABLE chatws.outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
ALTER TABLE chatws.keys SET (autovacuum_vacuum_scale_factor = 0.05);
ALTER TABLE chatws.events SET (autovacuum_vacuum_scale_factor = 0.05);

CREATE FUNCTION chatws._new_epoch() RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT to_hex((random() * 4294967295)::bigint) || to_hex((extract(epoch FROM clock_timestamp()) * 1000)::bigint)
$$;

INSERT INTO chatws.log (epoch) VALUES (chatws._new_epoch());

-- The log's present counters.
CREATE FUNCTION chatws._newest(OUT epoch text, OUT place bigint, OUT log_offset bigint, OUT total bigint)
LANGUAGE sql STABLE AS $$
    SELECT l.epoch, coalesce(e.place, l.place), coalesce(e.log_offset, l.log_offset), coalesce(e.total, l.total)
    FROM chatws.log l
    LEFT JOIN (SELECT * FROM chatws.events ORDER BY place DESC LIMIT 1) e ON e.place > l.place
$$;

-- Whether a node that has read up to `p_place`, and last the event `p_offset` with `p_stamp`, has seen more than is there.
CREATE FUNCTION chatws._has_lost(p_epoch text, p_place bigint, p_offset bigint, p_stamp integer)
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT n.epoch = p_epoch AND (n.place < p_place OR n.log_offset < p_offset OR EXISTS (
        SELECT FROM chatws.events e WHERE e.log_offset = p_offset AND NOT e.transient AND e.stamp <> p_stamp))
    FROM chatws._newest() n
$$;

-- What follows a lock must see what was committed before it was had: a snapshot of its own for each statement.
CREATE FUNCTION chatws._need_read_committed() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'chatws: this needs the isolation level READ COMMITTED';
    END IF;
END
$$;

-- The caller holds the lock of `append`.
CREATE FUNCTION chatws._start_over() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    UPDATE chatws.log SET epoch = chatws._new_epoch(), place = n.place, log_offset = 0, total = 0
        FROM chatws._newest() n;
    -- not TRUNCATE, which would wait for a pg_dump, and all publishers with it
    DELETE FROM chatws.events;
    UPDATE chatws.keys SET log_offset = 0 WHERE log_offset <> 0;
END
$$;

CREATE FUNCTION chatws.start_over() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM chatws._need_read_committed();
    PERFORM pg_advisory_xact_lock(1667785076, 1);
    PERFORM chatws._start_over();
    PERFORM pg_notify('chatws', 'anew');
END
$$;
COMMENT ON FUNCTION chatws.start_over() IS
    'A new epoch: every page reloads. For the operator, after a backup was restored while no node ran.';

-- An event as nodes read it.
CREATE FUNCTION chatws._as_json(
    p_place bigint, p_offset bigint, p_transient boolean, p_time double precision, p_stamp integer, p_name text,
    p_channels text, p_except text, p_data text
) RETURNS json LANGUAGE sql IMMUTABLE AS $$
    SELECT json_build_array(p_place, CASE WHEN p_transient THEN 0 ELSE p_offset END,
        p_time, p_stamp, p_name, p_channels, p_except, p_data)
$$;

-- Give the outbox and `p_drafts` their places. One statement of the client, so that nobody holds the lock while he thinks.
-- The answer is small: whoever does not read it cannot hold the lock either.
--   p_drafts  [{"e": name, "c": channels, "x": except_user_id, "d": data, "k": key, "t": transient}]
--   p_epoch, p_place, p_offset, p_stamp  how far the node has read; what it lacks comes along if it is little
--   p_wait    whether to wait for others that append now
--   p_notify  whether nodes listen
--   p_awake   for so many seconds the node will look into the outbox often, if there was anything in it
--   p_now     seconds since 1970; NULL for the clock here
CREATE FUNCTION chatws.append(
    p_drafts json, p_epoch text, p_place bigint, p_offset bigint, p_stamp integer,
    p_wait boolean, p_notify boolean, p_awake double precision, p_now double precision
) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_now double precision;
    v_stamp integer := (random() * 2147483647)::integer;
    v_before record;
    v_moved bigint;
    v_others bigint;
    v_other_offsets bigint;
    v_fresh bigint;
    v_duplicates json;
    v_own_place bigint;
    v_missed json;
BEGIN
    PERFORM chatws._need_read_committed();
    IF p_wait THEN
        PERFORM pg_advisory_xact_lock(1667785076, 1);
    ELSIF NOT pg_try_advisory_xact_lock(1667785076, 1) THEN
        RETURN '{"busy":true}';
    END IF;
    IF chatws._has_lost(p_epoch, p_place, p_offset, p_stamp) THEN
        PERFORM chatws._start_over();
    END IF;
    SELECT * INTO v_before FROM chatws._newest();
    v_now := coalesce(p_now, extract(epoch FROM clock_timestamp()));
    WITH moved AS (
        DELETE FROM chatws.outbox
        WHERE id = ANY (ARRAY(SELECT o.id FROM chatws.outbox o ORDER BY o.id LIMIT 1000))
        RETURNING *
    ), draft AS (
        SELECT row_number() OVER (ORDER BY both_kinds.is_own, both_kinds.i) AS n, both_kinds.*
        FROM (
            SELECT false AS is_own, o.id AS i, o.name, o.channels, o.except_user_id, o.data, o.key, o.transient
            FROM moved o
            UNION ALL
            SELECT true, d.i, d.e, d.c, d.x, d.d, d.k, coalesce(d.t, false)
            FROM ROWS FROM (json_to_recordset(p_drafts) AS (e text, c text, x text, d text, k text, t boolean))
                WITH ORDINALITY AS d (e, c, x, d, k, t, i)
        ) both_kinds
    ), judged AS (
        SELECT draft.*, k.log_offset AS known_offset, k.time AS known_time,
            CASE WHEN draft.key IS NULL THEN draft.n ELSE min(draft.n) OVER (PARTITION BY draft.key) END AS first
        FROM draft LEFT JOIN chatws.keys k ON k.key = draft.key AND v_now - k.time < 600
    ), fresh AS (
        SELECT judged.*,
            v_before.place + row_number() OVER w AS place,
            v_before.log_offset + count(*) FILTER (WHERE NOT judged.transient) OVER w AS log_offset,
            v_before.total + coalesce(sum(octet_length(judged.data)) FILTER (WHERE NOT judged.transient) OVER w, 0)
                AS total
        FROM judged WHERE judged.known_time IS NULL AND judged.n = judged.first
        WINDOW w AS (ORDER BY judged.n)
    ), stored AS (
        INSERT INTO chatws.events
            (place, log_offset, transient, total, stamp, time, name, channels, except_user_id, data)
        SELECT f.place, f.log_offset, f.transient, f.total, v_stamp, v_now, f.name, f.channels, f.except_user_id, f.data
        FROM fresh f ORDER BY f.place
    ), remembered AS (
        INSERT INTO chatws.keys AS k (key, log_offset, time)
        SELECT f.key, CASE WHEN f.transient THEN 0 ELSE f.log_offset END, v_now FROM fresh f WHERE f.key IS NOT NULL
        ON CONFLICT (key) DO UPDATE SET log_offset = EXCLUDED.log_offset, time = EXCLUDED.time
    )
    SELECT
        (SELECT count(*) FROM moved),
        (SELECT count(*) FROM fresh f WHERE NOT f.is_own),
        (SELECT count(*) FROM fresh f WHERE NOT f.is_own AND NOT f.transient),
        (SELECT count(*) FROM fresh f),
        (SELECT json_agg(json_build_array(
                j.i - 1,
                coalesce(j.known_offset, CASE WHEN f.transient THEN 0 ELSE f.log_offset END),
                coalesce(j.known_time, v_now)))
            FROM judged j LEFT JOIN fresh f ON f.n = j.first
            WHERE j.is_own AND (j.known_time IS NOT NULL OR j.n <> j.first))
    INTO v_moved, v_others, v_other_offsets, v_fresh, v_duplicates;

    IF p_notify AND v_fresh > 0 THEN
        PERFORM pg_notify('chatws', (v_before.place + v_fresh)::text);
    END IF;
    IF v_moved > 0 AND p_awake > 0 THEN
        UPDATE chatws.waking SET awake_until = clock_timestamp() + make_interval(secs => p_awake)
            WHERE awake_until < clock_timestamp() + make_interval(secs => p_awake / 2);
    END IF;
    v_own_place := v_before.place + v_others;
    IF v_before.epoch = p_epoch AND v_own_place - p_place BETWEEN 1 AND 200 THEN
        SELECT CASE WHEN coalesce(sum(octet_length(e.data) + octet_length(e.channels)), 0) < 16384
                    THEN coalesce(json_agg(chatws._as_json(e.place, e.log_offset, e.transient, e.time, e.stamp, e.name,
                            e.channels, e.except_user_id, e.data) ORDER BY e.place), '[]') END
            INTO v_missed
            FROM chatws.events e WHERE e.place > p_place AND e.place <= v_own_place;
    END IF;
    RETURN json_build_object(
        'epoch', v_before.epoch, 'own_place', v_own_place, 'own_offset', v_before.log_offset + v_other_offsets,
        'time', v_now, 'stamp', v_stamp, 'moved', v_moved, 'duplicates', v_duplicates, 'missed', v_missed);
END
$$;

-- What a node lacks that has read up to `p_place`, at most `p_limit` events of about `p_size` bytes; nothing is changed
-- and nobody waited for.
CREATE FUNCTION chatws.poll(
    p_epoch text, p_place bigint, p_offset bigint, p_stamp integer, p_limit integer, p_size integer
) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_newest record;
    v_from bigint := p_place;
    v_events json;
    v_last bigint;
    v_is_cut boolean;
BEGIN
    SELECT * INTO v_newest FROM chatws._newest();
    IF v_newest.epoch <> p_epoch THEN
        v_from := 0;
    ELSIF chatws._has_lost(p_epoch, p_place, p_offset, p_stamp) THEN
        RETURN json_build_object('epoch', v_newest.epoch, 'upto', p_place, 'lost', true);
    END IF;
    -- taken after v_newest: all up to its place are visible now
    SELECT json_agg(chatws._as_json(s.place, s.log_offset, s.transient, s.time, s.stamp, s.name,
                s.channels, s.except_user_id, s.data) ORDER BY s.place),
            max(s.place), max(s.found) = p_limit OR count(*) < max(s.found)
        INTO v_events, v_last, v_is_cut
        FROM (
            SELECT e.*, sum(octet_length(e.data)) OVER (ORDER BY e.place) - octet_length(e.data) AS size_before,
                count(*) OVER () AS found
            FROM (SELECT * FROM chatws.events ev WHERE ev.place > v_from ORDER BY ev.place LIMIT p_limit) e
        ) s
        WHERE s.size_before < p_size;
    RETURN json_build_object(
        'epoch', v_newest.epoch,
        'upto', CASE WHEN v_is_cut THEN v_last ELSE greatest(v_newest.place, v_last, v_from) END,
        'more', coalesce(v_is_cut, false),
        'outbox', EXISTS (SELECT FROM chatws.outbox),
        'events', coalesce(v_events, '[]'));
END
$$;

-- For Broker.read: a page of at most `p_limit` events and about `p_size` bytes.
CREATE FUNCTION chatws.read(p_after bigint, p_limit integer, p_size integer) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT json_build_object(
        'events', coalesce(json_agg(chatws._as_json(s.place, s.log_offset, s.transient, s.time, s.stamp, s.name,
            s.channels, s.except_user_id, s.data) ORDER BY s.place), '[]'),
        'more', coalesce(count(*) < max(s.found), false))
    FROM (
        SELECT e.*, sum(octet_length(e.data)) OVER (ORDER BY e.place) - octet_length(e.data) AS size_before,
            count(*) OVER () AS found
        FROM (SELECT * FROM chatws.events ev WHERE NOT ev.transient AND ev.log_offset > p_after
              ORDER BY ev.log_offset LIMIT p_limit) e
    ) s
    WHERE s.size_before < p_size
$$;

CREATE FUNCTION chatws.bounds(OUT first bigint, OUT last bigint) LANGUAGE sql STABLE AS $$
    SELECT coalesce((SELECT min(e.log_offset) FROM chatws.events e WHERE NOT e.transient), n.log_offset + 1), n.log_offset
    FROM chatws._newest() n
$$;

-- Where a node begins.
CREATE FUNCTION chatws.head(OUT epoch text, OUT place bigint, OUT log_offset bigint, OUT stamp integer)
LANGUAGE sql STABLE AS $$
    SELECT n.epoch, n.place, n.log_offset,
        coalesce((SELECT e.stamp FROM chatws.events e WHERE e.log_offset = n.log_offset AND NOT e.transient), 0)
    FROM chatws._newest() n
$$;

-- Say that nobody need be woken for so many seconds, as nodes look anyway. Also a small write, to see whether one can.
CREATE FUNCTION chatws.stay_awake(p_seconds double precision) RETURNS void LANGUAGE sql VOLATILE AS $$
    UPDATE chatws.waking
    SET awake_until = greatest(awake_until, clock_timestamp() + make_interval(secs => p_seconds))
$$;

-- Delete up to `p_limit` of each kind of what is kept no longer; returns the most that was deleted of one kind. Waits
-- for nobody: of several at once one works. An age counts from the newest event: a quiet night makes nothing old.
CREATE FUNCTION chatws.trim(
    p_events bigint, p_seconds double precision, p_size bigint, p_limit integer, p_now double precision
) RETURNS integer LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_now double precision := coalesce(p_now, extract(epoch FROM clock_timestamp()));
    v_newest record;
    v_newest_time double precision;
    v_upto bigint;
    v_deleted integer;
    v_most integer := 0;
BEGIN
    PERFORM chatws._need_read_committed();
    IF NOT pg_try_advisory_xact_lock(1667785076, 2) THEN
        RETURN 0;
    END IF;
    SELECT * INTO v_newest FROM chatws._newest();
    SELECT e.time INTO v_newest_time FROM chatws.events e WHERE NOT e.transient ORDER BY e.log_offset DESC LIMIT 1;
    SELECT max(e.log_offset) INTO v_upto
        FROM (SELECT * FROM chatws.events ev WHERE NOT ev.transient ORDER BY ev.log_offset LIMIT p_limit) e
        WHERE (p_events > 0 AND e.log_offset <= v_newest.log_offset - p_events)
            OR (p_seconds > 0 AND e.time < v_newest_time - p_seconds)
            OR (p_size > 0 AND v_newest.total - e.total + octet_length(e.data) > p_size);
    IF v_upto IS NOT NULL THEN
        IF v_upto = v_newest.log_offset THEN
            -- with the newest event go the counters: nobody may append meanwhile
            IF NOT pg_try_advisory_xact_lock(1667785076, 1) THEN
                v_upto := v_upto - 1;
            ELSE
                SELECT * INTO v_newest FROM chatws._newest();
                UPDATE chatws.log SET place = v_newest.place, log_offset = v_newest.log_offset, total = v_newest.total;
            END IF;
        END IF;
        DELETE FROM chatws.events e WHERE NOT e.transient AND e.log_offset <= v_upto;
        GET DIAGNOSTICS v_most = ROW_COUNT;
    END IF;
    -- a minute is more than a node lags that reads at all
    DELETE FROM chatws.events e WHERE e.place = ANY (ARRAY(
        SELECT t.place FROM chatws.events t
        WHERE t.transient AND t.time < v_now - 60 AND t.place < v_newest.place ORDER BY t.place LIMIT p_limit));
    GET DIAGNOSTICS v_deleted = ROW_COUNT;
    v_most := greatest(v_most, v_deleted);
    DELETE FROM chatws.keys k WHERE k.key = ANY (ARRAY(
        SELECT o.key FROM chatws.keys o WHERE o.time < v_now - 600 ORDER BY o.time LIMIT p_limit));
    GET DIAGNOSTICS v_deleted = ROW_COUNT;
    RETURN greatest(v_most, v_deleted);
END
$$;
