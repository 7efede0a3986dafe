-- Idempotency keys that count for longer than 10 minutes: those of the outbox of another database (docs/outbox.md).
-- Programs that know migration 4 or a later one can work with it.

COMMENT ON TABLE chatws.keys IS
    'Idempotency keys of the last 10 minutes, each with the offset of its first event (0: a transient event). '
    'A key that counts for longer has a later time.';

-- Append the outbox and `p_drafts`. The client sends this as one statement and the response is small, so a client that
-- stalls cannot hold the lock.
--   p_drafts  [{"e": name, "c": channels, "x": except_user_id, "d": data, "k": key, "t": transient,
--             "s": seconds for which the key counts beyond 10 minutes}]
--   p_epoch, p_seq, p_offset, p_append_id  how far the node has read. A few missing events are returned as `missed`
--   p_wait    whether to wait for other appends
--   p_notify  whether nodes listen
--   p_poll_hint  seconds for which the node will poll the outbox, if the outbox was not empty
--   p_now     seconds since 1970; NULL for the database's clock
CREATE OR REPLACE FUNCTION chatws.append_events(
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
            SELECT false AS is_own, o.id AS i, o.name, o.channels, o.except_user_id, o.data, o.key, o.transient,
                0 AS extra
            FROM moved o
            UNION ALL
            SELECT true, d.i, d.e, d.c, d.x, d.d, d.k, coalesce(d.t, false),
                coalesce(d.s, 0)
            FROM ROWS FROM (json_to_recordset(p_drafts) AS (e text, c text, x text, d text, k text, t boolean,
                    s double precision))
                WITH ORDINALITY AS d (e, c, x, d, k, t, s, i)
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
        SELECT f.key, CASE WHEN f.transient THEN 0 ELSE f.event_offset END, v_now + f.extra
        FROM fresh f WHERE f.key IS NOT NULL
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
