-- The names of the schema follow the glossary of chatws. The history and every grant are kept.
-- Programs that know migration 4 or a later one can work with it.
--
-- A node of an earlier version that still runs cannot misread this schema: the functions that it calls to append, to
-- read its range and to renew leases are gone under their old names, so it rejects publishes until it is restarted.

-- Wait for nodes that append (1), trim (2) or renew leases (3), then for transactions that publish. Publishers lock
-- `outbox` before `waking`, so the same order here rules out a deadlock.
SELECT pg_advisory_xact_lock(1667785076, n) FROM generate_series(1, 3) n;
LOCK TABLE chatws.outbox IN ACCESS EXCLUSIVE MODE;

DROP FUNCTION chatws._newest();
DROP FUNCTION chatws._has_lost(text, bigint, bigint, integer);
DROP FUNCTION chatws._need_read_committed();
DROP FUNCTION chatws._start_over();
DROP FUNCTION chatws.start_over();
DROP FUNCTION chatws._as_json(bigint, bigint, boolean, double precision, integer, text, text, text, text);
DROP FUNCTION chatws.append(json, text, bigint, bigint, integer, boolean, boolean, double precision, double precision);
DROP FUNCTION chatws.poll(text, bigint, bigint, integer, integer, integer);
DROP FUNCTION chatws.read(bigint, integer, integer);
DROP FUNCTION chatws.bounds();
DROP FUNCTION chatws.head();
DROP FUNCTION chatws.stay_awake(double precision);
DROP FUNCTION chatws.trim(bigint, double precision, bigint, integer, double precision);
DROP FUNCTION chatws.lease(text, json, double precision, double precision);
DROP FUNCTION chatws.online(double precision);
DROP TRIGGER wake ON chatws.outbox;
DROP FUNCTION chatws._wake();

ALTER TABLE chatws.log RENAME TO history;
ALTER TABLE chatws.history RENAME COLUMN place TO seq;
ALTER TABLE chatws.history RENAME COLUMN log_offset TO event_offset;
ALTER TABLE chatws.history RENAME COLUMN total TO total_bytes;
COMMENT ON TABLE chatws.history IS 'One row. Written when the history is reset, and when its newest event is trimmed.';

ALTER TABLE chatws.events RENAME COLUMN place TO seq;
ALTER TABLE chatws.events RENAME COLUMN log_offset TO event_offset;
ALTER TABLE chatws.events RENAME COLUMN total TO total_bytes;
ALTER TABLE chatws.events RENAME COLUMN stamp TO append_id;
COMMENT ON TABLE chatws.events IS 'Accepted events, in the order in which every node delivers them.';
COMMENT ON COLUMN chatws.events.event_offset IS
    '1, 2, 3 … over the events that can be recovered. A transient event has the offset of the last one before it';
COMMENT ON COLUMN chatws.events.total_bytes IS 'bytes of data of all recoverable events so far';
COMMENT ON COLUMN chatws.events.append_id IS
    'random, one per append: distinguishes a history from a restored copy that went on differently';

ALTER TABLE chatws.keys RENAME COLUMN log_offset TO event_offset;
COMMENT ON TABLE chatws.keys IS
    'Idempotency keys of the last 10 minutes, each with the offset of its first event (0: a transient event).';

ALTER TABLE chatws.outbox RENAME COLUMN wakes TO notifies;
COMMENT ON TABLE chatws.outbox IS 'Events that transactions have published and no node has appended yet.';

ALTER TABLE chatws.waking RENAME TO poll_hint;
ALTER TABLE chatws.poll_hint RENAME COLUMN awake_until TO polled_until;
COMMENT ON TABLE chatws.poll_hint IS
    'Until then a node polls the outbox every few milliseconds, so publishers skip NOTIFY.';

ALTER TABLE chatws.nodes RENAME COLUMN until TO expires_at;
ALTER TABLE chatws.leases RENAME COLUMN tabs TO connection_count;
ALTER TABLE chatws.online_agents RENAME COLUMN tabs TO connection_count;
COMMENT ON VIEW chatws.online_agents IS
    'Agents online on any node. user_number is the id if that is an integer. connection_count is 0 within the grace.';

-- At the commit of a transaction that has published: notify the nodes, unless one of them is polling.
CREATE FUNCTION chatws._notify_outbox() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (SELECT polled_until FROM chatws.poll_hint) < clock_timestamp() THEN
        PERFORM pg_notify('chatws', 'outbox');
    END IF;
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER notify_outbox AFTER INSERT ON chatws.outbox DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.notifies) EXECUTE FUNCTION chatws._notify_outbox();

CREATE OR REPLACE FUNCTION chatws._put(
    p_name text, p_channels text[], p_except text, p_data text, p_key text, p_transient boolean
) RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    -- one notification per transaction, undone with a savepoint like the row itself
    v_notifies boolean := coalesce(current_setting('chatws.notified', true), '') = '';
BEGIN
    INSERT INTO chatws.outbox (name, channels, except_user_id, data, key, transient, notifies)
    VALUES (p_name, array_to_json(p_channels)::text, chatws._id_as_json(p_except), p_data,
        replace(p_key, '\', '\\'), p_transient, v_notifies);
    IF v_notifies THEN
        PERFORM set_config('chatws.notified', 'yes', true);
    END IF;
END
$$;

-- The present counters of the history.
CREATE FUNCTION chatws._newest(OUT epoch text, OUT seq bigint, OUT event_offset bigint, OUT total_bytes bigint)
LANGUAGE sql STABLE AS $$
    SELECT h.epoch, coalesce(e.seq, h.seq), coalesce(e.event_offset, h.event_offset),
        coalesce(e.total_bytes, h.total_bytes)
    FROM chatws.history h
    LEFT JOIN (SELECT * FROM chatws.events ORDER BY seq DESC LIMIT 1) e ON e.seq > h.seq
$$;

-- Whether a node that has read up to `p_seq`, and last the event `p_offset` of append `p_append_id`, has seen more than
-- the history holds.
CREATE FUNCTION chatws._has_lost(p_epoch text, p_seq bigint, p_offset bigint, p_append_id integer)
RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT n.epoch = p_epoch AND (n.seq < p_seq OR n.event_offset < p_offset OR EXISTS (
        SELECT FROM chatws.events e WHERE e.event_offset = p_offset AND NOT e.transient AND e.append_id <> p_append_id))
    FROM chatws._newest() n
$$;

-- After a lock, each statement needs a snapshot of its own, to see what was committed before the lock was obtained.
CREATE FUNCTION chatws._require_read_committed() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'chatws: this needs the isolation level READ COMMITTED';
    END IF;
END
$$;

-- The caller holds the lock of `append_events`. DELETE, because TRUNCATE would wait for a pg_dump and stop publishers.
CREATE FUNCTION chatws._reset_history() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    UPDATE chatws.history SET epoch = chatws._new_epoch(), seq = n.seq, event_offset = 0, total_bytes = 0
        FROM chatws._newest() n;
    DELETE FROM chatws.events;
    UPDATE chatws.keys SET event_offset = 0 WHERE event_offset <> 0;
END
$$;

CREATE FUNCTION chatws.reset_history() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    PERFORM chatws._require_read_committed();
    PERFORM pg_advisory_xact_lock(1667785076, 1);
    PERFORM chatws._reset_history();
    PERFORM pg_notify('chatws', 'reset');
END
$$;
COMMENT ON FUNCTION chatws.reset_history() IS
    'Begin a new epoch: every page reloads. For the operator, after a backup was restored while no node ran.';

-- An event as nodes read it.
CREATE FUNCTION chatws._as_json(
    p_seq bigint, p_offset bigint, p_transient boolean, p_time double precision, p_append_id integer, p_name text,
    p_channels text, p_except text, p_data text
) RETURNS json LANGUAGE sql IMMUTABLE AS $$
    SELECT json_build_array(p_seq, CASE WHEN p_transient THEN 0 ELSE p_offset END,
        p_time, p_append_id, p_name, p_channels, p_except, p_data)
$$;

-- Append the outbox and `p_drafts`. The client sends this as one statement and the response is small, so a client that
-- stalls cannot hold the lock.
--   p_drafts  [{"e": name, "c": channels, "x": except_user_id, "d": data, "k": key, "t": transient}]
--   p_epoch, p_seq, p_offset, p_append_id  how far the node has read. A few missing events are returned as `missed`
--   p_wait    whether to wait for other appends
--   p_notify  whether nodes listen
--   p_poll_hint  seconds for which the node will poll the outbox, if the outbox was not empty
--   p_now     seconds since 1970; NULL for the database's clock
CREATE FUNCTION chatws.append_events(
    p_drafts json, p_epoch text, p_seq bigint, p_offset bigint, p_append_id integer,
    p_wait boolean, p_notify boolean, p_poll_hint double precision, p_now double precision
) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_now double precision;
    v_append_id integer := (random() * 2147483647)::integer;
    v_before record;
    v_moved bigint;
    v_others bigint;
    v_other_offsets bigint;
    v_fresh bigint;
    v_duplicates json;
    v_own_seq bigint;
    v_missed json;
BEGIN
    PERFORM chatws._require_read_committed();
    IF p_wait THEN
        PERFORM pg_advisory_xact_lock(1667785076, 1);
    ELSIF NOT pg_try_advisory_xact_lock(1667785076, 1) THEN
        RETURN '{"busy":true}';
    END IF;
    IF chatws._has_lost(p_epoch, p_seq, p_offset, p_append_id) THEN
        PERFORM chatws._reset_history();
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
        SELECT draft.*, k.event_offset AS known_offset, k.time AS known_time,
            CASE WHEN draft.key IS NULL THEN draft.n ELSE min(draft.n) OVER (PARTITION BY draft.key) END AS first
        FROM draft LEFT JOIN chatws.keys k ON k.key = draft.key AND v_now - k.time < 600
    ), fresh AS (
        SELECT judged.*,
            v_before.seq + row_number() OVER w AS seq,
            v_before.event_offset + count(*) FILTER (WHERE NOT judged.transient) OVER w AS event_offset,
            v_before.total_bytes
                + coalesce(sum(octet_length(judged.data)) FILTER (WHERE NOT judged.transient) OVER w, 0) AS total_bytes
        FROM judged WHERE judged.known_time IS NULL AND judged.n = judged.first
        WINDOW w AS (ORDER BY judged.n)
    ), stored AS (
        INSERT INTO chatws.events
            (seq, event_offset, transient, total_bytes, append_id, time, name, channels, except_user_id, data)
        SELECT f.seq, f.event_offset, f.transient, f.total_bytes, v_append_id, v_now, f.name, f.channels,
            f.except_user_id, f.data
        FROM fresh f ORDER BY f.seq
    ), remembered AS (
        INSERT INTO chatws.keys AS k (key, event_offset, time)
        SELECT f.key, CASE WHEN f.transient THEN 0 ELSE f.event_offset END, v_now FROM fresh f WHERE f.key IS NOT NULL
        ON CONFLICT (key) DO UPDATE SET event_offset = EXCLUDED.event_offset, time = EXCLUDED.time
    )
    SELECT
        (SELECT count(*) FROM moved),
        (SELECT count(*) FROM fresh f WHERE NOT f.is_own),
        (SELECT count(*) FROM fresh f WHERE NOT f.is_own AND NOT f.transient),
        (SELECT count(*) FROM fresh f),
        (SELECT json_agg(json_build_array(
                j.i - 1,
                coalesce(j.known_offset, CASE WHEN f.transient THEN 0 ELSE f.event_offset END),
                coalesce(j.known_time, v_now)))
            FROM judged j LEFT JOIN fresh f ON f.n = j.first
            WHERE j.is_own AND (j.known_time IS NOT NULL OR j.n <> j.first))
    INTO v_moved, v_others, v_other_offsets, v_fresh, v_duplicates;

    IF p_notify AND v_fresh > 0 THEN
        PERFORM pg_notify('chatws', (v_before.seq + v_fresh)::text);
    END IF;
    IF v_moved > 0 AND p_poll_hint > 0 THEN
        UPDATE chatws.poll_hint SET polled_until = clock_timestamp() + make_interval(secs => p_poll_hint)
            WHERE polled_until < clock_timestamp() + make_interval(secs => p_poll_hint / 2);
    END IF;
    v_own_seq := v_before.seq + v_others;
    IF v_before.epoch = p_epoch AND v_own_seq - p_seq BETWEEN 1 AND 200 THEN
        SELECT CASE WHEN coalesce(sum(octet_length(e.data) + octet_length(e.channels)), 0) < 16384
                    THEN coalesce(json_agg(chatws._as_json(e.seq, e.event_offset, e.transient, e.time, e.append_id,
                            e.name, e.channels, e.except_user_id, e.data) ORDER BY e.seq), '[]') END
            INTO v_missed
            FROM chatws.events e WHERE e.seq > p_seq AND e.seq <= v_own_seq;
    END IF;
    RETURN json_build_object(
        'epoch', v_before.epoch, 'own_seq', v_own_seq, 'own_offset', v_before.event_offset + v_other_offsets,
        'time', v_now, 'append_id', v_append_id, 'moved', v_moved, 'duplicates', v_duplicates, 'missed', v_missed);
END
$$;

-- The events after `p_seq`, at most `p_limit` of about `p_size` bytes. Changes nothing and takes no lock.
CREATE FUNCTION chatws.poll(
    p_epoch text, p_seq bigint, p_offset bigint, p_append_id integer, p_limit integer, p_size integer
) RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_newest record;
    v_from bigint := p_seq;
    v_events json;
    v_last bigint;
    v_is_cut boolean;
BEGIN
    SELECT * INTO v_newest FROM chatws._newest();
    IF v_newest.epoch <> p_epoch THEN
        v_from := 0;
    ELSIF chatws._has_lost(p_epoch, p_seq, p_offset, p_append_id) THEN
        RETURN json_build_object('epoch', v_newest.epoch, 'upto', p_seq, 'lost', true);
    END IF;
    -- read after v_newest, so all events up to its seq are visible
    SELECT json_agg(chatws._as_json(s.seq, s.event_offset, s.transient, s.time, s.append_id, s.name,
                s.channels, s.except_user_id, s.data) ORDER BY s.seq),
            max(s.seq), max(s.row_count) = p_limit OR count(*) < max(s.row_count)
        INTO v_events, v_last, v_is_cut
        FROM (
            SELECT e.*, sum(octet_length(e.data)) OVER (ORDER BY e.seq) - octet_length(e.data) AS size_before,
                count(*) OVER () AS row_count
            FROM (SELECT * FROM chatws.events ev WHERE ev.seq > v_from ORDER BY ev.seq LIMIT p_limit) e
        ) s
        WHERE s.size_before < p_size;
    RETURN json_build_object(
        'epoch', v_newest.epoch,
        'upto', CASE WHEN v_is_cut THEN v_last ELSE greatest(v_newest.seq, v_last, v_from) END,
        'more', coalesce(v_is_cut, false),
        'outbox', EXISTS (SELECT FROM chatws.outbox),
        'events', coalesce(v_events, '[]'));
END
$$;

-- For Broker.read: a page of at most `p_limit` events and about `p_size` bytes.
CREATE FUNCTION chatws.read(p_after bigint, p_limit integer, p_size integer) RETURNS text LANGUAGE sql STABLE AS $$
    SELECT json_build_object(
        'events', coalesce(json_agg(chatws._as_json(s.seq, s.event_offset, s.transient, s.time, s.append_id, s.name,
            s.channels, s.except_user_id, s.data) ORDER BY s.seq), '[]'),
        'more', coalesce(count(*) < max(s.row_count), false))
    FROM (
        SELECT e.*, sum(octet_length(e.data)) OVER (ORDER BY e.seq) - octet_length(e.data) AS size_before,
            count(*) OVER () AS row_count
        FROM (SELECT * FROM chatws.events ev WHERE NOT ev.transient AND ev.event_offset > p_after
              ORDER BY ev.event_offset LIMIT p_limit) e
    ) s
    WHERE s.size_before < p_size
$$;

-- For Broker.offset_range.
CREATE FUNCTION chatws.offset_range(OUT first bigint, OUT last bigint) LANGUAGE sql STABLE AS $$
    SELECT coalesce((SELECT min(e.event_offset) FROM chatws.events e WHERE NOT e.transient), n.event_offset + 1),
        n.event_offset
    FROM chatws._newest() n
$$;

-- The position at which a node starts.
CREATE FUNCTION chatws.head(OUT epoch text, OUT seq bigint, OUT event_offset bigint, OUT append_id integer)
LANGUAGE sql STABLE AS $$
    SELECT n.epoch, n.seq, n.event_offset,
        coalesce((SELECT e.append_id FROM chatws.events e WHERE e.event_offset = n.event_offset AND NOT e.transient), 0)
    FROM chatws._newest() n
$$;

-- Announce that a node polls for so many seconds. Also a small write that shows whether the database accepts writes.
CREATE FUNCTION chatws.extend_poll_hint(p_seconds double precision) RETURNS void LANGUAGE sql VOLATILE AS $$
    UPDATE chatws.poll_hint
    SET polled_until = greatest(polled_until, clock_timestamp() + make_interval(secs => p_seconds))
$$;

-- Delete up to `p_limit` rows of each kind that are past their retention, and return the largest number deleted of one
-- kind. Only one of several concurrent calls works. Ages count from the newest event: a quiet night expires nothing.
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
    PERFORM chatws._require_read_committed();
    IF NOT pg_try_advisory_xact_lock(1667785076, 2) THEN
        RETURN 0;
    END IF;
    SELECT * INTO v_newest FROM chatws._newest();
    SELECT e.time INTO v_newest_time FROM chatws.events e WHERE NOT e.transient ORDER BY e.event_offset DESC LIMIT 1;
    SELECT max(e.event_offset) INTO v_upto
        FROM (SELECT * FROM chatws.events ev WHERE NOT ev.transient ORDER BY ev.event_offset LIMIT p_limit) e
        WHERE (p_events > 0 AND e.event_offset <= v_newest.event_offset - p_events)
            OR (p_seconds > 0 AND e.time < v_newest_time - p_seconds)
            OR (p_size > 0 AND v_newest.total_bytes - e.total_bytes + octet_length(e.data) > p_size);
    IF v_upto IS NOT NULL THEN
        IF v_upto = v_newest.event_offset THEN
            -- the counters go with the newest event, so nothing may be appended meanwhile
            IF NOT pg_try_advisory_xact_lock(1667785076, 1) THEN
                v_upto := v_upto - 1;
            ELSE
                SELECT * INTO v_newest FROM chatws._newest();
                UPDATE chatws.history
                    SET seq = v_newest.seq, event_offset = v_newest.event_offset, total_bytes = v_newest.total_bytes;
            END IF;
        END IF;
        DELETE FROM chatws.events e WHERE NOT e.transient AND e.event_offset <= v_upto;
        GET DIAGNOSTICS v_most = ROW_COUNT;
    END IF;
    -- transient events stay for a minute: longer than a node lags that reads at all
    DELETE FROM chatws.events e WHERE e.seq = ANY (ARRAY(
        SELECT t.seq FROM chatws.events t
        WHERE t.transient AND t.time < v_now - 60 AND t.seq < v_newest.seq ORDER BY t.seq LIMIT p_limit));
    GET DIAGNOSTICS v_deleted = ROW_COUNT;
    v_most := greatest(v_most, v_deleted);
    DELETE FROM chatws.keys k WHERE k.key = ANY (ARRAY(
        SELECT o.key FROM chatws.keys o WHERE o.time < v_now - 600 ORDER BY o.time LIMIT p_limit));
    GET DIAGNOSTICS v_deleted = ROW_COUNT;
    RETURN greatest(v_most, v_deleted);
END
$$;

-- See Broker.lease. Users are named by their user_key.
--   p_connections  [[user_key, user_number, connection_count]]; connection_count is null for users that have left
CREATE FUNCTION chatws.renew_leases(p_node text, p_connections json, p_seconds double precision, p_now double precision)
RETURNS text LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    v_now double precision;
    v_dead text[];
    v_touched text[];
    v_before text[];
    v_after text[];
BEGIN
    PERFORM chatws._require_read_committed();
    -- One call at a time: two nodes that lose the same user at once would both report no change.
    PERFORM pg_advisory_xact_lock(1667785076, 3);
    v_now := coalesce(p_now, extract(epoch FROM clock_timestamp()));
    INSERT INTO chatws.nodes (node, expires_at) VALUES (p_node, v_now + p_seconds)
        ON CONFLICT (node) DO UPDATE SET expires_at = EXCLUDED.expires_at;
    v_dead := ARRAY(SELECT n.node FROM chatws.nodes n WHERE n.expires_at <= v_now AND n.node <> p_node);
    v_touched := ARRAY(
        SELECT entry ->> 0 FROM json_array_elements(p_connections) entry
        UNION SELECT l.user_key FROM chatws.leases l WHERE l.node = ANY (v_dead));
    v_before := ARRAY(SELECT DISTINCT l.user_key FROM chatws.leases l WHERE l.user_key = ANY (v_touched));
    DELETE FROM chatws.nodes n WHERE n.node = ANY (v_dead);
    DELETE FROM chatws.leases l USING json_array_elements(p_connections) entry
        WHERE l.node = p_node AND l.user_key = entry ->> 0 AND entry ->> 2 IS NULL;
    INSERT INTO chatws.leases AS l (node, user_key, user_number, connection_count)
        SELECT p_node, entry ->> 0, (entry ->> 1)::bigint, (entry ->> 2)::integer
        FROM json_array_elements(p_connections) entry WHERE entry ->> 2 IS NOT NULL
        ON CONFLICT (node, user_key) DO UPDATE SET connection_count = EXCLUDED.connection_count
            WHERE l.connection_count <> EXCLUDED.connection_count;
    v_after := ARRAY(SELECT DISTINCT l.user_key FROM chatws.leases l WHERE l.user_key = ANY (v_touched));
    RETURN json_build_object(
        'joined', (SELECT coalesce(json_agg(entry), '[]')
            FROM (SELECT unnest(v_after) EXCEPT SELECT unnest(v_before)) s (entry)),
        'left', (SELECT coalesce(json_agg(entry), '[]')
            FROM (SELECT unnest(v_before) EXCEPT SELECT unnest(v_after)) s (entry)),
        'held', (SELECT count(*) FROM chatws.leases l WHERE l.node = p_node),
        'online', (SELECT count(DISTINCT l.user_key) FROM chatws.leases l));
END
$$;

-- See Broker.online.
CREATE FUNCTION chatws.online(p_now double precision) RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(json_agg(DISTINCT l.user_key), '[]')::text
    FROM chatws.leases l JOIN chatws.nodes n USING (node)
    WHERE n.expires_at > coalesce(p_now, extract(epoch FROM clock_timestamp()))
$$;

-- Grants to roles stay: `publish`, `revoke`, `disconnect` and `online_agents` were not dropped.
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA chatws FROM PUBLIC;
